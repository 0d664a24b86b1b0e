"""`GptqConfig`: how kernels are rounded in closed form."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from detent._validation import Options

__all__ = ["GptqConfig"]


class GptqConfig(Options):
    """Options of rounding in closed form; keyword only, immutable.

    Attributes:
        samples: calibration samples that the layers' inputs are taken from; the last quarter of them judges.
        inputs: a layer's inputs are those that the `"quantized"` layers before it give, so that it makes up for their
            errors as well, or the `"float"` network's, so that it answers for its own only.
        damping: part of the mean diagonal of the Hessian that is added to its diagonal; also how firmly a kernel is
            held to its float values where the inputs do not tell.
        order: columns are rounded as `"given"`, or those of the greatest `"activation"` first.
        sweeps: of coordinate descent behind that; 0 leaves it out.
        refits: how often the step of each channel is fitted to its codes, and these to it; not for power-of-two steps.
        exact_columns: rows of at most so many elements, those of depthwise layers for instance, are searched for the
            best of all codes; 0 searches none.
        exact_values: most values that this search tries for a row; beyond, it ends with the best codes so far.
        seed: of the positions whose patches are taken.

    Raises:
        ConfigError: an unknown key (with a suggestion) or a value out of range.
    """

    samples: Annotated[int, Field(ge=2)] = 1024
    inputs: Literal["quantized", "float"] = "quantized"
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    order: Literal["activation", "given"] = "activation"
    sweeps: Annotated[int, Field(ge=0)] = 64
    refits: Annotated[int, Field(ge=0)] = 3
    exact_columns: Annotated[int, Field(ge=0, le=32)] = 9
    exact_values: Annotated[int, Field(ge=1)] = 100_000
    seed: Annotated[int, Field(ge=0)] = 0
