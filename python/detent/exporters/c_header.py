"""A TensorFlow Lite file as a C header: the bytes, and as constants what an application must know about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from detent.errors import ConfigError
from detent.exporters.onnx_io import IoChoice
from detent.exporters.report import ExportReport, require_writable, write_file
from detent.exporters.subject import ExportableModel
from detent.exporters.tflite import tflite_content
from detent.exporters.tflite_parameters import Value

__all__ = ["export_c_header"]

_LINE: Final = 16
_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def export_c_header(
    qmodel: ExportableModel,
    path: str | Path,
    *,
    name: str | None = None,
    batch: int = 1,
    runtime: str | None = None,
    inputs: IoChoice = None,
    outputs: IoChoice = None,
    parameters: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write a quantized model as a C header (C99 and C++11) that holds a TensorFlow Lite file.

    Args:
        qmodel: a `QuantizedModel`, for target `tflite` or one like it.
        path: file to write; it is complete or not there.
        name: what names in the header begin with; None takes the file's.
        batch: as `export_tflite`, like the arguments behind it.

    Raises:
        ConfigError: `name` is no C name, and whatever else `export_tflite` raises.
    """
    path = Path(path)
    stem = re.sub(r"\W", "_", path.stem) if name is None else name
    if not _IDENTIFIER.fullmatch(stem):
        raise ConfigError(
            f"{stem!r} is no name in C", remedy="give `name`, letters and digits that begin with a letter"
        )
    require_writable(path)
    file = tflite_content(qmodel, batch=batch, runtime=runtime, inputs=inputs, outputs=outputs, parameters=parameters)
    text = _header(stem, file.content, file.ends, file.parameters).encode()
    write_file(path, text)
    return ExportReport(
        path=path,
        format="c",
        bytes=len(text),
        operators=file.operators,
        rounding=file.runtime,
        notes=(f"{len(file.content)} bytes on the device",),
    )


def _header(stem: str, content: bytes, ends: Mapping[str, Any], parameters: Mapping[str, Value]) -> str:
    guard = f"{stem.upper()}_H_"
    rows = [
        "  " + ", ".join(f"0x{byte:02x}" for byte in content[begin : begin + _LINE]) + ","
        for begin in range(0, len(content), _LINE)
    ]
    lines = [
        "// A quantized network, written by detent: a TensorFlow Lite file and what it takes and gives.",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        "#if defined(__cplusplus)",
        f"#define {stem.upper()}_ALIGNED alignas(16)",
        "#else",
        f"#define {stem.upper()}_ALIGNED _Alignas(16)",
        "#endif",
        "",
        *_ends(stem, ends),
        *_parameters(stem, parameters),
        f"static const size_t {stem}_size = {len(content)};",
        f"{stem.upper()}_ALIGNED static const uint8_t {stem}_data[] = {{",
        *rows,
        "};",
        "",
        f"#endif  // {guard}",
        "",
    ]
    return "\n".join(lines)


def _ends(stem: str, ends: Mapping[str, Any]) -> list[str]:
    """Tables of inputs and outputs; a value is `(code - zero_point) * scale`, and scale is 0 where values are real."""
    kind = f"{stem}_tensor"
    lines = [
        "typedef struct {",
        "  const char *name;",
        "  const char *dtype;",
        "  float scale;  // a value is (code - zero_point) * scale; 0 for float32",
        "  int32_t zero_point;",
        "  int32_t rank;",
        "  int32_t shape[6];",
        f"}} {kind};",
        "",
    ]
    for side, entries in ends.items():
        rows = [
            f"  {{{_text(name)}, {_text(entry['dtype'])}, {_real(entry.get('scale', 0.0))}, "
            f"{entry.get('zero_point', 0)}, {len(entry['shape'])}, {{{', '.join(map(str, entry['shape']))}}}}},"
            for name, entry in entries.items()
        ]
        lines += [f"enum {{ {stem}_{side}_count = {len(rows)} }};"]
        lines += [f"static const {kind} {stem}_{side}[] = {{", *rows, "};", ""]
    return lines


def _parameters(stem: str, parameters: Mapping[str, Value]) -> list[str]:
    """A table of parameters, each with the one of three pointers that its type has."""
    kind = f"{stem}_parameter"
    lines = [
        "typedef struct {",
        "  const char *name;",
        "  int32_t count;",
        "  const double *numbers;  // or NULL",
        "  const char *const *texts;  // or NULL",
        f"}} {kind};",
        "",
    ]
    rows = []
    for place, (name, value) in enumerate(parameters.items()):
        values = value if isinstance(value, list) else [value]
        held = f"{stem}_value_{place}"
        if values and all(isinstance(one, str) for one in values):
            lines.append(f"static const char *const {held}[] = {{{', '.join(_text(str(one)) for one in values)}}};")
            rows.append(f"  {{{_text(name)}, {len(values)}, NULL, {held}}},")
        elif values:
            numbers = ", ".join(repr(float(one)) for one in values)
            lines.append(f"static const double {held}[] = {{{numbers}}};")
            rows.append(f"  {{{_text(name)}, {len(values)}, {held}, NULL}},")
        else:
            rows.append(f"  {{{_text(name)}, 0, NULL, NULL}},")
    lines.append(f"enum {{ {stem}_parameters_count = {len(rows)} }};")
    # C has no empty arrays.
    rows = rows or ["  {NULL, 0, NULL, NULL},"]
    return [*lines, f"static const {kind} {stem}_parameters[] = {{", *rows, "};", ""]


def _real(number: float) -> str:
    return f"{number!r}f"


def _text(text: str) -> str:
    """A C string; bytes beyond ASCII are octal, which ends after three digits whatever follows."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{escaped}"'
