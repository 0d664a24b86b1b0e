"""The MODEL argument: a saved program, or a function that builds the network."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detent.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["find_model"]


def find_model(argument: str) -> nn.Module | Path:
    """The network that MODEL stands for.

    Args:
        argument: path of a `.pt2` file, which is returned as it is, or `package.module:factory`, a function or class
            called without arguments that returns an `nn.Module`. Modules in the current folder are found.

    Raises:
        ConfigError: neither, or the factory cannot be imported, called or returns something else.
    """
    if argument.endswith(".pt2"):
        return Path(argument)
    module_name, colon, factory_name = argument.partition(":")
    if not colon or not module_name or not factory_name:
        raise ConfigError(
            "the model is neither a .pt2 file nor package.module:factory",
            where=argument,
            remedy="save the model with torch.export.save(..., 'model.pt2'), or name a function that returns it",
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: object = importlib.import_module(module_name)
        for name in factory_name.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot import the model: {error}",
            where=argument,
            remedy="run in the folder the package is in, or install the package",
        ) from error
    except Exception as error:
        raise _failed("importing the model", argument, error) from error
    return _build(found, argument)


def _build(factory: object, argument: str) -> nn.Module:
    from torch import nn

    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise ConfigError(f"the factory is a {type(factory).__name__}, not a function", where=argument)
    try:
        model = factory()
    except TypeError as error:
        raise ConfigError(
            f"the factory cannot be called without arguments: {error}",
            where=argument,
            remedy="write a function without arguments that loads the weights and returns the module",
        ) from error
    except Exception as error:
        raise _failed("the factory", argument, error) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the factory returned a {type(model).__name__}, not an nn.Module", where=argument)
    return model


def _failed(what: str, argument: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{what} failed: {type(error).__name__}: {error}",
        where=argument,
        remedy="repair it; --debug shows the traceback",
    )
