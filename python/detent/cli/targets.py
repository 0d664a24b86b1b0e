"""`detent targets`: the known targets, or the facts of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from detent.cli.options import Debug

if TYPE_CHECKING:
    from detent.targets import OpRule, Target

__all__ = ["targets"]


def targets(
    name: Annotated[str | None, typer.Argument(help="Show this target: a name or a .json file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print NAME complete, as a file to start from.")] = False,
    debug: Debug = False,
) -> None:
    """List the targets, or show one."""
    from detent.targets import load_target, target_names

    console = Console(highlight=False)
    if name is None:
        if json:
            raise typer.BadParameter("--json needs the name of a target")
        table = Table("target", "weights", "activations", "bias", box=None, pad_edge=False)
        for known in target_names():
            rule = load_target(known).rule("conv")
            table.add_row(known, _weights(rule), _activations(rule), _bias(rule))
        console.print(table)
        console.print("Widths in bits, the first is the default. `detent targets NAME` shows one with its sources.\n")
        _show_operators(console)
    elif json:
        typer.echo(load_target(name).model_dump_json(indent=2))
    else:
        _show(console, load_target(name))


def _show_operators(console: Console) -> None:
    from detent.exporters.matrix import operator_matrix

    matrix = operator_matrix()
    names = list(next(iter(matrix.values())))
    table = Table("operator", *names, box=None, pad_edge=False)
    kinds: dict[tuple[str, ...], list[str]] = {}
    for (kind, name), cells in matrix.items():
        kinds.setdefault((kind, *cells.values()), []).append(name)
    for (_, *widths), operators in kinds.items():
        table.add_row(", ".join(operators), *widths)
    console.print(table)
    console.print("Widths of weights x activations; refused: the target's file cannot hold it on codes.")


_SIGN: Final = {True: "signed", False: "unsigned", None: "sign from data"}


def _show(console: Console, target: Target) -> None:
    console.print(str(target), markup=False)
    console.print(f"activations: {_activations(target.defaults)}; bias: {_bias(target.defaults)}")
    console.print(f"files: {', '.join(target.formats)}; integer programs round like {target.runtime}")
    table = Table("operation", "weights", "inputs", "output", box=None, pad_edge=False)
    for name, rule in {**target.ops, "all others": target.defaults}.items():
        table.add_row(name, _weights(rule), _inputs(rule), _output(rule, target.defaults))
    console.print(table)
    on_request: dict[str, list[str]] = {}
    for name, rule in target.ops.items():
        on_request.setdefault(_alternatives(rule), []).append(name)
    for offered, names in on_request.items():
        if offered:
            console.print(f"on request, weights of {', '.join(names)}: {offered}", markup=False)
    if any(rule.activations.per_channel for rule in (target.defaults, *target.ops.values())):
        console.print("on request, activations have a step for each channel where nothing sums over them")
    for heads, tails in _grouped(target.fusing).items():
        console.print(f"fused: {' | '.join(heads)}, then {' | '.join(tails)}", markup=False)
    for bits, multiple in target.channel_multiples.items():
        console.print(f"channels at {bits} bits are padded to multiples of {multiple}")
    for source in target.sources:
        console.print(f"source: {source}", markup=False, soft_wrap=True)


def _grouped(fusing: tuple[tuple[str, ...], ...]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Patterns that end alike together: beginnings to endings."""
    endings: dict[str, tuple[str, ...]] = {}
    for pattern in fusing:
        begin = " + ".join(pattern[:-1])
        endings[begin] = (*endings.get(begin, ()), pattern[-1])
    grouped: dict[tuple[str, ...], tuple[str, ...]] = {}
    for tails in dict.fromkeys(endings.values()):
        grouped[tuple(begin for begin, ends in endings.items() if ends == tails)] = tails
    return grouped


def _weights(rule: OpRule) -> str:
    weights = rule.weights
    if weights is None:
        return "float"
    scope = "per channel" if weights.per_channel else "per tensor"
    return f"{weights.kind} {_widths(weights.bits)} {scope}"


def _alternatives(rule: OpRule) -> str:
    """What kernels may have on request besides `_weights`."""
    weights = rule.weights
    if weights is None:
        return ""
    words: list[str] = list(weights.other_kinds)
    if weights.codebook_bits:
        each = " per tensor or channel" if weights.codebooks_per_channel else ""
        words.append(f"codebooks {_widths(weights.codebook_bits)}{each}")
    if weights.group_sizes:
        sizes = weights.group_sizes if weights.group_sizes == "any" else _widths(weights.group_sizes)
        words.append(f"groups of {sizes}")
    return ", ".join(words)


def _activations(rule: OpRule) -> str:
    usual = f"{rule.activations.kind} {_widths(rule.activations.bits)} {_SIGN[rule.activations.signed]}"
    special = [
        f"{width} {'' if exception.kind == rule.activations.kind else exception.kind + ' '}{_SIGN[exception.signed]}"
        for width, exception in rule.activations.exceptions.items()
        if width in rule.activations.bits
    ]
    return ", ".join([usual, *special])


def _inputs(rule: OpRule) -> str:
    if not rule.quantize_inputs:
        return "as they come"
    if rule.input_bits is None:
        return "quantized"
    return "as output" if rule.input_bits == "output" else f"{_widths(rule.input_bits)} bits"


def _bias(rule: OpRule) -> str:
    return "float" if rule.bias_bits is None else f"int{rule.bias_bits}"


def _output(rule: OpRule, usual: OpRule) -> str:
    if rule.fixed_outputs:
        return "\n".join(f"step 1/{1 / grid.scale:g}, zero point {grid.zero_point}" for grid in rule.fixed_outputs)
    if rule.activations != usual.activations:
        return _activations(rule)
    if rule.inputs_share_output_grid:
        return "own grid, inputs take it"
    return {"own": "own grid", "input": "grid of the input", "none": "where a reader needs it"}[rule.output_grid]


def _widths(bits: tuple[int, ...]) -> str:
    return "/".join(str(width) for width in bits)
