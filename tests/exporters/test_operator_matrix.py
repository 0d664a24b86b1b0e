"""The matrix of operators and targets is what the documentation shows, and true: single operators are exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detent
from detent.errors import DetentError, UnsupportedOpError
from detent.exporters import FORMATS
from detent.exporters.matrix import REFUSED, as_markdown, cell, operator_matrix, operators
from detent.targets import KINDS, load_target, target_names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "exports" / "operators.md"

BEHIND: Final[dict[str, Callable[[Tensor], Any]]] = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": lambda x: F.hardtanh(x + 1, -0.5, 0.5),
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "exp": torch.exp,
    "sqrt": lambda x: torch.sqrt(x.abs() + 1),
    "add": lambda x: x + x.transpose(2, 3),
    "sub": lambda x: x - x.transpose(2, 3),
    "mul": lambda x: x * x.transpose(2, 3),
    "div": lambda x: x / (F.relu(x) + 1),
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "cat": lambda x: torch.cat([x, x.transpose(2, 3)], 1),
    "mean": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum((2, 3)),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "softmax": lambda x: x.softmax(1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "constant_pad_nd": lambda x: F.pad(x, (1, 1)),
    "resize_nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "upsample_bilinear2d": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "conv": nn.Conv2d(4, 3, 3),
    "conv_transposed": nn.ConvTranspose2d(4, 3, 2, stride=2),
    "linear": nn.Linear(6, 3),
}
"""By operator: a function of a convolution's output."""


class Single(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


def refusal(name: str, target: str, path: Path, **options: Any) -> DetentError | None:
    """Why the target, or its own format, does not take a network of this operator; None where it does."""
    torch.manual_seed(0)
    model, data = Single(BEHIND[name]).eval(), [torch.randn(4, 3, 6, 6)]
    try:
        qmodel = detent.quantize(model, data, target=target, progress=False, **options)
        detent.export(qmodel, path, format=load_target(target).formats[0])
    except DetentError as error:
        return error
    return None


def kind_of(name: str) -> str:
    return next(kind for kind, known in operators() if known == name)


@pytest.mark.parametrize("name", BEHIND)
def test_tflite_holds_what_the_matrix_says(name: str, tmp_path: Path) -> None:
    said = cell(kind_of(name), name, load_target("tflite"))
    found = refusal(name, "tflite", tmp_path / "model.tflite")
    if said == REFUSED:
        assert isinstance(found, UnsupportedOpError)
        assert found.where
        assert not list(tmp_path.iterdir())
        return
    assert found is None
    wide = refusal(name, "tflite", tmp_path / "wide.tflite", activation_bits=16)
    assert (wide is None) == ("16" in said.split(" x ")[-1]), str(wide)


@pytest.mark.parametrize("name", ["celu", "gelu", "softplus", "leaky_relu", "hardsigmoid"])
def test_imx500_holds_what_the_matrix_says(name: str, tmp_path: Path) -> None:
    said = cell(kind_of(name), name, load_target("imx500"))
    found = refusal(name, "imx500", tmp_path / "model.onnx")
    assert isinstance(found, UnsupportedOpError) if said == REFUSED else found is None


def test_every_operator_has_a_row_and_every_target_a_format() -> None:
    rows = set(operators())
    assert {kind for kind, _ in rows} == set(KINDS)
    for name in target_names():
        for format in load_target(name).formats:
            assert format in FORMATS
    matrix = operator_matrix()
    assert matrix["conv", "conv"]["imx500"] == "2/4/8 x 8/16"
    assert matrix["activation", "gelu"]["imx500"] == REFUSED
    assert matrix["norm", "layer_norm"]["tensorrt"] == "float"
    assert matrix["activation", "sigmoid"]["tflite"] == "8"


def test_the_page_is_what_is_generated() -> None:
    begin, end = "<!-- operators: begin -->\n", "<!-- operators: end -->\n"
    shown = PAGE.read_text().split(begin)[1].split(end)[0]
    assert shown.strip() == as_markdown().strip(), "run python docs/operators.py"
