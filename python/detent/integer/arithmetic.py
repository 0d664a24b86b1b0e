"""How runtimes get from exact sums to codes: the rules an integer program is made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from detent._registry import Registry
from detent.errors import UnsupportedOpError
from detent.integer.operations import SumRule
from detent.kernels.requantize import Rule

__all__ = ["RUNTIMES", "Arithmetic", "Functions"]

Functions = Literal["exact", "fixed_point"]


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """The arithmetic of a runtime.

    Args:
        convolution: rule of convolutions.
        linear: rule of linear layers.
        wide_linear: rule of linear layers with 16-bit activations; None where programs do not have it.
        sums: rule of sums.
        fixed_point: products and means multiply with whole numbers, by the rule `"double_rounding"`; else in float32.
        functions: sigmoid, tanh and the like are rounded from exact values, or computed with whole numbers.
        ties_away: values of inputs are rounded half away from zero, else half to even.
        factor_bits: factors are rounded to whole numbers of so many bits times powers of two, biases to one bit fewer
            and a sign. None leaves factors and biases as they are.
        kinds: of operations the runtime has; None for all that programs have.
    """

    convolution: Rule = "float"
    linear: Rule = "float"
    wide_linear: Rule | None = "float"
    sums: SumRule = "fused_float"
    fixed_point: bool = False
    functions: Functions = "exact"
    ties_away: bool = False
    factor_bits: int | None = None
    kinds: frozenset[str] | None = None

    def of_layer(self, kind: str, bits: int) -> Rule:
        """The rule of a layer, a `"convolution"` or `"linear"`, that reads codes of so many bits.

        Raises:
            UnsupportedOpError: programs do not have it.
        """
        if bits > 8 and self.fixed_point:
            if self.wide_linear is None and kind == "linear":
                raise UnsupportedOpError(
                    "programs do not have this runtime's arithmetic of linear layers with 16-bit activations",
                    remedy="use runtime='tflite_micro', or 8-bit activations",
                )
            return self.wide_linear if kind == "linear" and self.wide_linear else "int16x8"
        return self.linear if kind == "linear" else self.convolution


RUNTIMES: Final[Registry[Arithmetic]] = Registry("runtime")
"""By name; targets name theirs."""

RUNTIMES.add("onnxruntime", Arithmetic())
RUNTIMES.add("xnnpack", Arithmetic(sums="xnnpack"))
RUNTIMES.add(
    "tflite_micro",
    Arithmetic(
        convolution="double_rounding",
        linear="double_rounding",
        wide_linear="int16x8",
        sums="double_rounding",
        fixed_point=True,
        functions="fixed_point",
        ties_away=True,
    ),
)
RUNTIMES.add(
    "litert_reference",
    Arithmetic(
        convolution="double_rounding",
        linear="single_rounding",
        wide_linear=None,
        sums="double_rounding",
        fixed_point=True,
        functions="fixed_point",
        ties_away=True,
    ),
)
RUNTIMES.add(
    "litert",
    Arithmetic(
        convolution="ruy",
        linear="ruy",
        wide_linear=None,
        sums="double_rounding",
        fixed_point=True,
        functions="exact",
        ties_away=True,
    ),
)
RUNTIMES.add(
    "akida",
    # floor(accumulator * M / S + 1/2) with M of 8 bits and S a power of two: what "int16x8" does with such a factor.
    Arithmetic(
        convolution="int16x8",
        linear="int16x8",
        sums="aligned",
        factor_bits=8,
        kinds=frozenset({"add", "conv", "linear", "mean", "pool"}),
    ),
)
