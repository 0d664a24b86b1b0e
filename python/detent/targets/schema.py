"""`Target`: everything detent needs to know about a chip or runtime.

A file states only what differs: entries of `ops` are laid over `defaults`, and over the file named by `extends`. The
loaded `Target` is complete, so `target.rule("conv")` needs no further look-up.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from detent._registry import unknown_name
from detent._validation import FrozenModel
from detent.errors import ConfigError
from detent.targets.op_names import OP_NAMES, kind_of

__all__ = [
    "ActivationRule",
    "FixedGrid",
    "GridKindName",
    "IoType",
    "OpRule",
    "Target",
    "WeightRule",
    "WidthException",
]

GridKindName = Literal["power_of_two", "symmetric", "uniform"]
IoType = Literal["float32", "int8", "uint8", "int16", "uint16"]
Bits = Annotated[int, Field(ge=1, le=16)]


class _WidthRule(FrozenModel):
    """A kind of grid and the code widths it comes in.

    Attributes:
        kind: rule of the grid.
        bits: code widths the target computes with; the first is used unless another is asked for.
    """

    kind: GridKindName
    bits: Annotated[tuple[Bits, ...], Field(min_length=1)]

    @field_validator("bits")
    @classmethod
    def _distinct(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(bits)) != len(bits):
            raise ConfigError(f"a bit width is listed twice: {list(bits)}")
        return bits

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of grid the target computes with here: a power of two is a symmetric threshold too."""
        return ("symmetric", "power_of_two") if self.kind == "symmetric" else (self.kind,)

    def widths(self, kind: str) -> tuple[int, ...]:
        """Code widths a kind of grid comes in, in order of preference."""
        return self.bits

    def choose_bits(
        self, requested: int | None, *, what: str, target: str, kind: str | None = None, where: str | None = None
    ) -> int:
        """The width to use: the target's first, or the requested one.

        Args:
            requested: bits asked for by the user, or None.
            what: "weights", "codebooks" or "activations", for the error.
            target: the target's name, for the error.
            kind: kind of grid; None for the rule's own.
            where: name of the layer or value, for the error.

        Raises:
            ConfigError: the target has no such width.
        """
        offered = self.widths(self.kind if kind is None else kind)
        if requested is None:
            return offered[0]
        if requested not in offered:
            known = ", ".join(str(width) for width in sorted(offered))
            raise ConfigError(
                f"target {target!r} has no {requested}-bit {what}",
                where=where,
                remedy=f"choose among {known}, or write a target file that extends it",
            )
        return requested


class WeightRule(_WidthRule):
    """How a kernel is quantized. Codes are always signed, but for those of a codebook, which count its values.

    Attributes:
        per_channel: one threshold for each output channel, else one for the tensor.
        narrow_range: the lowest code is not used (int8: -127..127).
        other_kinds: kinds of grid the target computes with besides `kind`, in the same widths.
        codebook_bits: code widths of codebooks (`"lut"` grids) the target computes with; none without an entry.
        codebooks_per_channel: a kernel may have a codebook for each output channel, not only one for all.
        group_sizes: numbers of input channels that may share a step instead of all of a channel; `"any"` for any.
    """

    per_channel: bool = True
    narrow_range: bool = False
    other_kinds: tuple[GridKindName, ...] = ()
    codebook_bits: tuple[Annotated[int, Field(ge=2, le=7)], ...] = ()
    codebooks_per_channel: bool = False
    group_sizes: tuple[Annotated[int, Field(ge=1)], ...] | Literal["any"] = ()

    @model_validator(mode="after")
    def _consistent(self) -> WeightRule:
        if min(self.bits) < 2:
            raise ConfigError(f"weights are signed and need at least 2 bits, got {min(self.bits)}")
        if self.narrow_range and self.kind == "uniform":
            raise ConfigError("`narrow_range` is for symmetric and power-of-two weights")
        if self.codebooks_per_channel and not (self.codebook_bits and self.per_channel):
            raise ConfigError("`codebooks_per_channel` needs `codebook_bits` and per_channel")
        if self.group_sizes and not self.per_channel:
            raise ConfigError("`group_sizes` divide the channels of kernels with a threshold for each: set per_channel")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of grid the target computes with here, its own first."""
        kinds = [self.kind, *self.other_kinds]
        kinds += ["power_of_two"] if "symmetric" in kinds else []
        return tuple(dict.fromkeys([*kinds, *(["lut"] if self.codebook_bits else [])]))

    def widths(self, kind: str) -> tuple[int, ...]:
        """Code widths a kind of grid comes in, in order of preference."""
        return self.codebook_bits if kind == "lut" else self.bits

    def require_kind(self, kind: str, *, where: str, target: str) -> None:
        """Refuse a kind of grid the target does not compute with; the error names `where` and the kinds offered."""
        if kind not in self.kinds:
            raise ConfigError(
                f"target {target!r} computes this kernel with {' or '.join(self.kinds)} grids, not with {kind} ones",
                where=where,
                remedy="choose one of these, or write a target file that extends it",
            )

    def require_codebook_per_channel(self, *, where: str, target: str) -> None:
        """Refuse a codebook for each channel where the target has one for all; the error names `where`."""
        if not self.codebooks_per_channel:
            raise ConfigError(
                f"target {target!r} has one codebook for all channels of this kernel, not one for each",
                where=where,
                remedy="use codebook_scope='tensor', or write a target file that extends it",
            )

    def require_group_size(self, group_size: int, *, where: str, target: str) -> None:
        """Refuse a group size the target does not compute with; the error names `where` and the sizes offered."""
        if self.group_sizes == "any" or group_size in self.group_sizes:
            return
        offered = "groups of " + ", ".join(map(str, self.group_sizes)) if self.group_sizes else "no groups"
        raise ConfigError(
            f"target {target!r} offers {offered} for this kernel, asked for are groups of {group_size} input channels",
            where=where,
            remedy="choose what it offers, or write a target file that extends it",
        )


class WidthException(FrozenModel):
    """What a target does otherwise at one code width of activations.

    Attributes:
        kind: rule of the grid there.
        signed: whether codes are signed there; None decides by the data.
    """

    kind: GridKindName
    signed: bool | None


class ActivationRule(_WidthRule):
    """How a computed value is quantized: one grid for the whole tensor, unless a user asks for what else is offered.

    Attributes:
        signed: whether codes are signed; None decides by the data (a value never below zero gets unsigned codes).
        per_channel: on request, a value has a step for each channel where nothing sums over its channels.
        exceptions: code width to what differs there (TFLite is uniform at 8 bits and symmetric at 16); one at a width
            that `bits` does not offer has no effect, so that a target laid over another can offer fewer.
    """

    signed: bool | None
    per_channel: bool = False
    exceptions: dict[int, WidthException] = Field(default_factory=dict)

    def at(self, bits: int) -> ActivationRule:
        """The rule at one width, without exceptions."""
        other = self.exceptions.get(bits, self)
        update: dict[str, Any] = {"bits": (bits,), "kind": other.kind, "signed": other.signed, "exceptions": {}}
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _consistent(self) -> ActivationRule:
        for width, exception in self.exceptions.items():
            # Built anew, so that the checks below see the rule as it is at that width.
            ActivationRule(kind=exception.kind, bits=(width,), signed=exception.signed)
        if self.kind == "uniform" and self.signed is None:
            raise ConfigError(
                "`signed` must be true or false for uniform activations",
                remedy="a uniform grid fits any range either way; the flag says which integer type holds the codes",
            )
        if self.signed is not False and self.kind != "uniform" and min(self.bits) < 2:
            raise ConfigError("signed activations need at least 2 bits")
        return self


class FixedGrid(FrozenModel):
    """A grid the target prescribes: value = (code - zero_point) * scale.

    Attributes:
        bits: the code width it is prescribed for.
        signed: whether codes are signed.
        scale: step.
        zero_point: code of real zero.
    """

    bits: Bits
    signed: bool
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    zero_point: int

    @model_validator(mode="after")
    def _consistent(self) -> FixedGrid:
        if not self.qmin <= self.zero_point <= self.qmax:
            raise ConfigError(f"zero point {self.zero_point} is not a code: codes are {self.qmin}..{self.qmax}")
        return self

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def limits(self) -> tuple[float, float]:
        """Real values of the lowest and the highest code."""
        return (self.qmin - self.zero_point) * self.scale, (self.qmax - self.zero_point) * self.scale


class OpRule(FrozenModel):
    """How one operation is computed.

    Attributes:
        weights: rule of the kernel; None leaves it in float.
        bias_bits: width of bias codes, at step (input step) x (weight step); None leaves the bias in float.
        activations: rule of the output's grid; also of the inputs' grids where `quantize_inputs` asks for one that the
            producing operation does not give.
        quantize_inputs: the operation reads quantized values only, so each computed input gets a grid.
        output_grid: `"own"`: the output is quantized to a grid of its own; `"input"`: it keeps the grid of its input;
            `"none"`: it gets a grid only where an operation with `quantize_inputs` reads it.
        inputs_share_output_grid: all inputs take the grid of the output (concatenation without requantizing).
        fixed_outputs: grids the target prescribes for the output, at most one for each width.
        input_bits: code widths of inputs it computes with; `"output"`: that of its output; None: any.
        source: where the fact is published.
    """

    weights: WeightRule | None
    bias_bits: Literal[32] | None
    activations: ActivationRule
    quantize_inputs: bool = True
    output_grid: Literal["own", "input", "none"] = "own"
    inputs_share_output_grid: bool = False
    fixed_outputs: tuple[FixedGrid, ...] = ()
    input_bits: tuple[Bits, ...] | Literal["output"] | None = None
    source: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> OpRule:
        if self.output_grid != "own" and (self.fixed_outputs or self.inputs_share_output_grid):
            raise ConfigError("`fixed_outputs` and `inputs_share_output_grid` need `output_grid` to be 'own'")
        widths = [grid.bits for grid in self.fixed_outputs]
        if len(set(widths)) != len(widths):
            raise ConfigError("`fixed_outputs` has two grids for one width")
        return self

    @property
    def of_inputs(self) -> OpRule:
        """The rule of values this operation reads but does not compute: what binds its outputs does not bind them."""
        return self.model_copy(update={"fixed_outputs": (), "inputs_share_output_grid": False})

    def fixed_output(self, bits: int) -> FixedGrid | None:
        """The grid prescribed for outputs of that width, if any."""
        return next((grid for grid in self.fixed_outputs if grid.bits == bits), None)


class Target(FrozenModel):
    """A chip or a runtime.

    Attributes:
        schema_version: version of this format.
        name: how users call it.
        version: version of the facts.
        description: one or two sentences.
        sources: where the facts are published.
        defaults: the rule of operations that `ops` does not name.
        ops: rules by kind of operation or name of a single one; complete, see `rule`.
        fusing: chains of operations computed as one, with no quantizer inside; longest match wins.
        quantize_model_inputs: model inputs are quantized even if only float operations read them.
        quantize_model_outputs: model outputs are quantized even if nothing reads them.
        input_dtype: element type of inputs in exported files, unless another is asked for.
        output_dtype: likewise of outputs.
        formats: names of the file formats that it reads, the one that holds most first; `detent.export` has them.
        runtime: whose arithmetic its integer programs have; `detent.lower` has the names.
        channel_multiples: code width to the number that channel counts are padded to in memory (SIMD width).
    """

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: str
    description: str
    sources: tuple[str, ...]
    defaults: OpRule
    ops: dict[str, OpRule] = Field(default_factory=dict)
    fusing: tuple[tuple[str, ...], ...] = ()
    quantize_model_inputs: bool = True
    quantize_model_outputs: bool = True
    input_dtype: IoType = "float32"
    output_dtype: IoType = "float32"
    formats: Annotated[tuple[str, ...], Field(min_length=1)] = ("onnx",)
    runtime: str = "onnxruntime"
    channel_multiples: dict[int, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)

    @field_validator("ops")
    @classmethod
    def _known_ops(cls, ops: dict[str, OpRule]) -> dict[str, OpRule]:
        for name in ops:
            _check_op_name(name)
        return ops

    @field_validator("fusing", mode="before")
    @classmethod
    def _expanded(cls, patterns: Any) -> Any:
        # A step may list alternatives: [["conv", "linear"], "relu"] stands for two patterns.
        if not isinstance(patterns, list) or not all(isinstance(pattern, list) for pattern in patterns):
            raise ConfigError("`fusing` is a list of patterns, each a list of operations")
        expanded: list[tuple[str, ...]] = []
        for pattern in patterns:
            steps = [step if isinstance(step, list) else [step] for step in pattern]
            expanded += [chain for chain in itertools.product(*steps) if chain not in expanded]
        for chain in expanded:
            if len(chain) < 2:
                raise ConfigError("a fusing pattern has at least two operations", remedy=f"got {list(chain)}")
            for name in chain:
                _check_op_name(name)
        return tuple(expanded)

    def rule(self, kind: str, name: str | None = None) -> OpRule:
        """The rule of an operation.

        Args:
            kind: kind of operation, `"activation"` for instance.
            name: the single operation, `"tanh"` for instance; falls back to the rule of the kind.
        """
        for word in (name, kind):
            if word is not None and word in self.ops:
                return self.ops[word]
        return self.defaults

    @property
    def weights_bits(self) -> tuple[int, ...]:
        """Widths that kernels come in anywhere on this target, in order of preference."""
        rules = [rule.weights for rule in (self.defaults, *self.ops.values())]
        return tuple(dict.fromkeys(width for rule in rules if rule is not None for width in rule.bits))

    @property
    def activation_bits(self) -> tuple[int, ...]:
        """Widths that computed values come in anywhere on this target, in order of preference."""
        rules = [rule.activations for rule in (self.defaults, *self.ops.values())]
        return tuple(dict.fromkeys(width for rule in rules for width in rule.bits))

    def __str__(self) -> str:
        return f"{self.name} {self.version}: {self.description}"


def _check_op_name(name: object) -> None:
    if name not in OP_NAMES:
        raise unknown_name("operation", name, OP_NAMES)


def merge_rules(data: dict[str, Any]) -> dict[str, Any]:
    """Lay each entry of `ops` over `defaults`; a single operation also over the entry of its kind."""
    defaults, ops = data.get("defaults"), data.get("ops")
    if not isinstance(defaults, dict) or not isinstance(ops, dict):
        return data  # the schema says what is wrong
    complete = {}
    for name, entry in ops.items():
        kind = kind_of(name)
        under = overlay(defaults, ops[kind]) if kind in ops else defaults
        complete[name] = overlay(under, entry)
    return {**data, "ops": complete}


def overlay(base: Any, over: Any) -> Any:
    """`over` laid over `base`: objects key by key, anything else replaces."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {**base, **{key: overlay(base.get(key), value) for key, value in over.items()}}
