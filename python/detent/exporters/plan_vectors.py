"""A plan beside tensors: its long vectors and its codes as references to arrays, so that nothing is stored twice.

Wherever a plan has a list of numbers for channels, its text then has `{"array": name}`: that array, float32. With
`times` it is the array multiplied by that power of two, as limits follow from steps. In place of `packed` codes it is
the array of codes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.records.codes import pack_codes
from detent.records.grid import LUT_STEPS
from detent.records.plan import QuantPlan

__all__ = ["joined_plan", "split_plan"]

_VECTORS: Final = ("threshold", "lower", "upper", "table", "gain", "shift")

Arrays = dict[str, npt.NDArray[Any]]


def split_plan(plan: QuantPlan, stored: Mapping[str, npt.NDArray[Any]]) -> tuple[str, Arrays]:
    """The text of a plan with references, and the arrays that it refers to besides `stored` ones.

    Args:
        plan: the plan.
        stored: arrays that are there anyway, by name: steps, codes.
    """
    data = json.loads(plan.to_json())
    names: dict[Any, str] = {}
    for name, array in stored.items():
        names.setdefault(_content(array), name)
    added: Arrays = {}

    def refer(array: npt.NDArray[Any], fresh: str) -> str:
        name = names.setdefault(_content(array), fresh)
        if name == fresh:
            added[name] = array
        return name

    for name, owner, key in _vectors(data):
        if isinstance(owner[key], list):
            owner[key] = _reference(owner, key, names, refer, f"plan:{name}.{key}")
    for layer, entry in _kernels_with_codes(data):
        codes = plan.weights[layer].codes
        assert codes is not None
        entry["codes"]["packed"] = {"array": refer(codes.codes, f"plan:weights.{layer}.codes")}
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")), added


def joined_plan(text: str, arrays: Mapping[str, npt.NDArray[Any]], where: str) -> QuantPlan:
    """The plan that `split_plan` split; errors carry `where`.

    Raises:
        FormatError: it is none, or of another version.
        ConfigError: an entry that makes no sense.
        KeyError: an array is missing.
    """
    data = json.loads(text)
    for _, owner, key in _vectors(data):
        if isinstance(owner[key], dict):
            vector = arrays[owner[key]["array"]] * np.float32(owner[key].get("times", 1))
            owner[key] = _numbers(vector)
    for _, entry in _kernels_with_codes(data):
        codes, bits = arrays[entry["codes"]["packed"]["array"]], entry["grid"]["bits"]
        entry["codes"]["packed"] = base64.b64encode(pack_codes(codes, bits)).decode("ascii")
    return QuantPlan.from_json(json.dumps(data), where)


def _vectors(data: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every place of a plan's data that may hold a vector: name of the entry, what holds it, and its key there."""
    for table in ("activations", "weights", "bias_corrections"):
        for name, entry in data.get(table, {}).items():
            if isinstance(entry, dict):
                for owner in (entry, entry.get("grid")):
                    if isinstance(owner, dict):
                        yield from ((f"{table}.{name}", owner, key) for key in _VECTORS if key in owner)


def _kernels_with_codes(data: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((layer, entry) for layer, entry in data.get("weights", {}).items() if "codes" in entry and entry != "float")


def _reference(
    owner: Mapping[str, Any], key: str, names: Mapping[Any, str], refer: Callable[[Any, str], str], fresh: str
) -> dict[str, Any]:
    vector = np.array(owner[key], np.float64).astype(np.float32)
    if key == "threshold":
        # The step of the same grid, which is stored beside the codes, is the limit over a power of two.
        times = LUT_STEPS if owner["kind"] == "lut" else 1 << (owner["bits"] - owner["signed"])
        steps = vector / np.float32(times)
        if _content(steps) in names and np.array_equal(steps * np.float32(times), vector):
            return {"array": names[_content(steps)], "times": times}
    return {"array": refer(vector, fresh)}


def _content(array: npt.NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, array.tobytes()


def _numbers(vector: npt.NDArray[np.float32]) -> list[Any]:
    # The shortest decimal of each, as plans have them.
    return [float(str(one)) if one.ndim == 0 else _numbers(one) for one in vector]
