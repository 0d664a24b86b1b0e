"""What cannot be captured says what, where and what to do."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detent.errors import CaptureError, FormatError
from detent.graph import capture
from tests.models import MODELS, build


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class Selecting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0] * 2.0


class Printing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.detach().numpy().mean())


class TwoTensors(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


@pytest.mark.parametrize(
    ("model", "line"),
    [(Branching(), "if x.sum() > 0:"), (Selecting(), "return x[x > 0]"), (Printing(), "x.detach().numpy()")],
    ids=["branch", "shape", "numpy"],
)
def test_what_cannot_be_traced_names_the_users_line(
    model: nn.Module, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(model, torch.randn(2, 5))
    assert line in str(caught.value.where)
    assert "Traceback" not in capfd.readouterr().err  # torch logs its own
    assert "test_capture_errors.py" in str(caught.value.where)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "inputs", [(torch.randn(2, 5),), (torch.randn(2, 5),) * 3, {"a": torch.randn(2, 5), "c": torch.randn(2, 5)}]
)
def test_wrong_inputs_name_the_parameters(inputs: Any) -> None:
    with pytest.raises(CaptureError, match="do not fit the model's parameters") as caught:
        capture(TwoTensors(), inputs)
    assert "(a: " in caught.value.what


def test_wrong_type_and_shape_are_the_models_own_errors() -> None:
    model = build("perceptron")
    with pytest.raises(CaptureError, match="does not run on the example inputs") as caught:
        capture(model, torch.randn(2, 6).double())
    assert "float64" in str(caught.value.remedy)
    assert "float32" in str(caught.value.remedy)
    with pytest.raises(CaptureError, match="does not run on the example inputs") as caught:
        capture(model, torch.randn(2, 7))
    assert "[2, 7]" in str(caught.value.remedy)
    assert "self.layers(x)" in str(caught.value.where)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [(None, "needs example inputs"), (torch.zeros(0, 6), "empty tensor"), (3.0, "no tensor")],
    ids=["none", "empty", "number"],
)
def test_useless_examples(inputs: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(build("perceptron"), inputs)


def test_something_else_than_a_model() -> None:
    with pytest.raises(CaptureError, match="cannot capture a function"):
        capture(lambda x: x, torch.zeros(1))  # type: ignore[arg-type]


def test_a_batch_of_the_wrong_form() -> None:
    graph = capture(build("dict_input"), MODELS["dict_input"].inputs(2))
    with pytest.raises(CaptureError, match="takes 2 input tensors"):
        graph.flatten((torch.zeros(1),))
    with pytest.raises(CaptureError, match="no entry for the model's input"):
        graph.flatten({"image": torch.zeros(1), "scaler": torch.zeros(1)})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    model, inputs = build("conv_chain"), MODELS["conv_chain"].inputs(2)
    program = torch.export.export(model, inputs, dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, path)
    return path


def test_a_saved_program(saved: Path) -> None:
    (x,) = MODELS["conv_chain"].inputs(5)
    for path in (saved, str(saved)):
        graph = capture(path)
        assert graph.batch.dynamic
        assert graph.find("features.4").weight_name == "features.4.weight"
        assert "models.py" in str(graph.find("head").source)
        torch.testing.assert_close(graph(x), build("conv_chain")(x))


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot read the model file"):
        capture(tmp_path / "none.pt2")
    with pytest.raises(FormatError, match="cannot read the model file"):
        capture(tmp_path)
    foreign = tmp_path / "foreign.pt2"
    foreign.write_bytes(b"not an archive")
    with pytest.raises(FormatError, match=r"not a whole \.pt2 archive"):
        capture(foreign)
    empty = tmp_path / "empty.pt2"
    with zipfile.ZipFile(empty, "w"):
        pass
    with pytest.raises(FormatError):
        capture(empty)


def test_damaged_files(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    for length in (10, len(content) // 2, len(content) - 5):
        cut = tmp_path / "cut.pt2"
        cut.write_bytes(content[:length])
        with pytest.raises(FormatError):
            capture(cut)
    flipped = bytearray(content)
    position = content.index(b"conv2d")
    flipped[position] ^= 0xFF
    bad = tmp_path / "flipped.pt2"
    bad.write_bytes(flipped)
    with pytest.raises(FormatError, match="checksum"):
        capture(bad)


def test_an_edited_program_is_refused(saved: Path, tmp_path: Path) -> None:
    edited = rewritten(saved, tmp_path, lambda name, data: data.replace(b"aten.conv2d", b"aten.conv9d"))
    with pytest.raises(FormatError, match="cannot read the exported program"):
        capture(edited)


class Payload:
    ran = False

    def __reduce__(self) -> Any:
        return setattr, (Payload, "ran", True)


def test_pickled_objects_are_never_loaded(saved: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(Payload(), buffer)
    evil = rewritten(saved, tmp_path, lambda name, data: buffer.getvalue() if name.endswith(".pt") else data)
    with pytest.raises(FormatError, match="never unpickles"):
        capture(evil)
    marked = rewritten(saved, tmp_path, lambda name, data: data.replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(FormatError, match="never unpickles"):
        capture(marked)
    added = tmp_path / "added.pt2"
    added.write_bytes(saved.read_bytes())
    with zipfile.ZipFile(added, "a") as archive:
        archive.writestr("model/data/constants/opaque_obj_0", pickle.dumps(Payload()))
    with pytest.raises(FormatError, match="never unpickles"):
        capture(added)
    assert not Payload.ran


def rewritten(source: Path, folder: Path, edit: Any) -> Path:
    """A copy of an archive with its members edited."""
    target = folder / "edited.pt2"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return target
