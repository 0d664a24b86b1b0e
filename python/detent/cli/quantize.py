"""`detent quantize`: a model and calibration data in; plan, statistics and ONNX file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from detent._validation import parse_json
from detent.cli.options import Debug
from detent.errors import ConfigError
from detent.records.files import read_text

__all__ = ["quantize"]


def quantize(
    model: Annotated[str, typer.Argument(help="A .pt2 file, or package.module:factory.", metavar="MODEL")],
    data: Annotated[Path, typer.Option(help="Calibration inputs: an .npz file, samples along the first axis.")],
    out: Annotated[Path, typer.Option(help="Folder for plan.json, statistics.safetensors and exported files.")],
    target: Annotated[str, typer.Option(help="A name that `detent targets` lists, or a .json file.")] = "default",
    activation_metric: Annotated[str | None, typer.Option(help="Error that activation thresholds minimize.")] = None,
    moving_maximum: Annotated[
        float | None, typer.Option(help="Momentum of --activation-metric moving_maximum.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Samples run at a time; only a moving maximum depends on it.", min=1)
    ] = 64,
    activation_per_channel: Annotated[
        bool | None,
        typer.Option("--activation-per-channel", help="A step a channel where nothing sums over them."),
    ] = None,
    concat_threshold_update: Annotated[
        bool | None, typer.Option("--concat-threshold-update", help="Inputs of a concatenation take its grid.")
    ] = None,
    weights_metric: Annotated[str | None, typer.Option(help="Error that weight thresholds minimize.")] = None,
    z_threshold: Annotated[float | None, typer.Option(help="Ignore values this many deviations out.")] = None,
    weights_bits: Annotated[int | None, typer.Option(help="Code width of all kernels.")] = None,
    activation_bits: Annotated[int | None, typer.Option(help="Code width of all activations.")] = None,
    weights_grid: Annotated[
        str | None, typer.Option(help="power_of_two, symmetric, uniform, lut or lut_power_of_two.")
    ] = None,
    codebook_scope: Annotated[str | None, typer.Option(help="A codebook for each tensor or channel.")] = None,
    weights_group_size: Annotated[int | None, typer.Option(help="Input channels that share a step.")] = None,
    weight_search: Annotated[str | None, typer.Option(help="exact or grid.")] = None,
    equalization: Annotated[str | None, typer.Option(help="none, activations or cross_layer.")] = None,
    shift_negative: Annotated[
        bool | None, typer.Option("--shift-negative/--no-shift-negative", help="Unsigned codes for SiLU and the like.")
    ] = None,
    bias_correction: Annotated[str | None, typer.Option(help="auto, none, analytic or sequential.")] = None,
    gain_correction: Annotated[str | None, typer.Option(help="auto, none, least_squares or second_moment.")] = None,
    rounding: Annotated[str | None, typer.Option(help="How kernels are rounded: nearest, gptq or learned.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Limit of a resource, e.g. weights=50% or bit_operations='3 GBOPs'; may be given again."),
    ] = None,
    latency: Annotated[Path | None, typer.Option(help="JSON list of measured times, for --budget latency=...")] = None,
    preprocessing: Annotated[
        Path | None, typer.Option(help="JSON with the fields of detent.Preprocessing; the data are raw then.")
    ] = None,
    input_dtype: Annotated[
        str | None, typer.Option(help="Type of inputs in exported files: float32, int8, uint8.")
    ] = None,
    output_dtype: Annotated[str | None, typer.Option(help="Type of outputs in files.")] = None,
    rules: Annotated[Path | None, typer.Option(help="JSON list of rules for single tensors.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="JSON with fields of detent.QuantizationConfig; options of the command line win."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run interrupted in OUT.")] = False,
    onnx: Annotated[bool, typer.Option(help="Write model.onnx.")] = True,
    export: Annotated[
        list[str] | None,
        typer.Option(help="Write this file too, in the format of its suffix: model.tflite; may be given again."),
    ] = None,
    c_array: Annotated[bool, typer.Option("--c-array", help="Write model.h, TensorFlow Lite as a C array.")] = False,
    debug: Debug = False,
) -> None:
    """Quantize MODEL with calibration data for a target, and write it for its runtimes."""
    from detent.cli.models import find_model
    from detent.cli.steps import Export, quantize_to_folder

    given = {
        "activation_metric": activation_metric,
        "moving_maximum": moving_maximum,
        "activation_per_channel": activation_per_channel,
        "concat_threshold_update": concat_threshold_update,
        "weights_metric": weights_metric,
        "z_threshold": z_threshold,
        "weights_bits": weights_bits,
        "activation_bits": activation_bits,
        "weights_grid": weights_grid,
        "codebook_scope": codebook_scope,
        "weights_group_size": weights_group_size,
        "weight_search": weight_search,
        "equalization": equalization,
        "shift_negative": shift_negative,
        "bias_correction": bias_correction,
        "gain_correction": gain_correction,
        "rounding": rounding,
    }
    names = [*(["model.onnx"] if onnx else []), *(export or []), *(["model.h"] if c_array else [])]
    options = _configured(config) | {name: value for name, value in given.items() if value is not None}
    quantize_to_folder(
        find_model(model),
        data,
        out,
        target=target,
        options=options,
        rules=rules,
        preprocessing=preprocessing,
        budget=_budget(budget),
        latency=latency,
        resume=resume,
        batch_size=batch_size,
        export=Export(names=tuple(dict.fromkeys(names)), inputs=input_dtype, outputs=output_dtype),
    )


def _configured(path: Path | None) -> dict[str, Any]:
    """The fields of a configuration file."""
    if path is None:
        return {}
    remedy = 'write the fields of detent.QuantizationConfig, {"rounding": "gptq"} for instance'
    fields = parse_json(read_text(path), str(path), remedy=remedy)
    if not isinstance(fields, dict):
        raise ConfigError("a configuration is an object", where=str(path), remedy=remedy)
    return fields


def _budget(given: list[str] | None) -> dict[str, str] | None:
    """Limits written as `resource=amount`."""
    if not given:
        return None
    found: dict[str, str] = {}
    for text in given:
        name, separator, amount = text.partition("=")
        if not separator:
            raise ConfigError(f"--budget {text!r} names no resource", remedy="write it as weights=50%")
        if name.strip() in found:
            raise ConfigError(f"--budget limits {name.strip()} twice", remedy="give one limit for each resource")
        found[name.strip()] = amount.strip()
    return found
