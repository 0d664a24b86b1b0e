"""What cannot be exported is refused with a reason, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.exporters.hand_quantized import HandQuantized, quantize_by_hand, symmetric
from torch import nn

from detent.errors import ConfigError, ExportError
from detent.exporters import export, export_onnx, verify_onnx


@pytest.fixture(scope="module")
def qmodel() -> HandQuantized:
    torch.manual_seed(0)
    return quantize_by_hand(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 4))


def test_model_on_another_device(tmp_path: Path) -> None:
    elsewhere = quantize_by_hand(nn.Linear(4, 8), torch.randn(4, 4))
    elsewhere.graph_module.to("meta")
    with pytest.raises(ExportError, match=r"(?s)lies on meta.*qmodel\.cpu\(\)"):
        export(elsewhere, tmp_path / "model.onnx")


def test_activation_on_a_codebook(tmp_path: Path) -> None:
    unusual = quantize_by_hand(nn.Linear(4, 8), torch.randn(4, 4))
    graph = unusual.graph_module.graph
    node = next(node for node in graph.nodes if node.target is torch.ops.detent.fake_quantize.default)
    node.target = torch.ops.detent.lut_fake_quantize.default
    node.args = (node.args[0], node.args[1], node.args[1], None)
    with pytest.raises(ExportError, match=r"(?s)codebook grid.*power_of_two grid"):
        export(unusual, tmp_path / "model.onnx")


def test_average_pool_with_a_divisor_of_its_own(tmp_path: Path) -> None:
    class Divided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(x, 2, divisor_override=3)

    # torch's exporter leaves the divisor out without a word.
    pooled = quantize_by_hand(nn.Sequential(nn.Conv2d(1, 2, 1), Divided()), torch.randn(2, 1, 4, 4))
    with pytest.raises(ExportError, match=r"(?s)divisor of its own.*avg_pool"):
        export(pooled, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_unknown_suffix_format_and_option(qmodel: HandQuantized, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)'\.onx'.*did you mean '\.onnx'"):
        export(qmodel, tmp_path / "model.onx")
    with pytest.raises(ConfigError, match=r"(?s)'onxx'.*did you mean 'onnx'"):
        export(qmodel, tmp_path / "model", format="onxx")
    with pytest.raises(ConfigError, match=r"(?s)'opsett'.*did you mean 'opset'"):
        export(qmodel, tmp_path / "model.onnx", opsett=21)
    assert not list(tmp_path.iterdir())


def test_format_may_be_named_where_the_suffix_says_nothing(qmodel: HandQuantized, tmp_path: Path) -> None:
    path = export(qmodel, tmp_path / "model", format="onnx").path
    assert verify_onnx(path, qmodel, torch.randn(4, 4)).largest_steps <= 1.0


def test_opset_that_is_too_old_says_why(qmodel: HandQuantized, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"(?s)opset 13 is too old.*opset=18"):
        export_onnx(qmodel, tmp_path / "model.onnx", opset=13)
    with pytest.raises(ExportError, match=r"(?s)knows opsets up to \d+, not 99"):
        export_onnx(qmodel, tmp_path / "model.onnx", opset=99)
    narrow = quantize_by_hand(nn.Linear(4, 8), torch.randn(4, 4), weights=symmetric(4, axis=0))
    with pytest.raises(ExportError, match=r"(?s)opset 18 is too old: 4-bit codes of 'weight'.*opset=21"):
        export_onnx(narrow, tmp_path / "model.onnx", opset=18)
    assert not list(tmp_path.iterdir())


def test_operator_without_onnx_form_is_named_with_its_source_line(tmp_path: Path) -> None:
    class Special(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(torch.relu(x))  # the line to be named

    qmodel = quantize_by_hand(Special(), torch.randn(4, 4))
    with pytest.raises(ExportError, match=r"(?s)bessel_j0.*test_onnx_refusals\.py:\d+.*the line to be named"):
        export(qmodel, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_name_the_extra(
    package: str, qmodel: HandQuantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=r'(?s)pip install "detent\[onnx\]"'):
        export(qmodel, tmp_path / "model.onnx")


def test_missing_folder(qmodel: HandQuantized, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="folder does not exist"):
        export(qmodel, tmp_path / "nowhere" / "model.onnx")


def test_full_disk_leaves_the_old_file(qmodel: HandQuantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old file")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match=r"(?s)No space left.*nothing was left half-written"):
        export(qmodel, path)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_file_and_wrong_inputs(qmodel: HandQuantized, tmp_path: Path) -> None:
    path = export(qmodel, tmp_path / "model.onnx").path
    with pytest.raises(ConfigError, match="takes 1 inputs, got 2"):
        verify_onnx(path, qmodel, (torch.randn(4, 4), torch.randn(4, 4)))
    with pytest.raises(ConfigError, match="at least one"):
        verify_onnx(path, qmodel, torch.randn(0, 4))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ExportError, match="onnxruntime cannot load"):
        verify_onnx(path, qmodel, torch.randn(4, 4))


def test_onnx_is_not_imported_with_the_package() -> None:
    code = (
        "import sys, detent.exporters; sys.exit(any(m in sys.modules for m in ('onnx', 'onnxscript', 'onnxruntime')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
