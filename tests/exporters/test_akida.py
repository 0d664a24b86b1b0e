"""Files for Akida: what is in them, that onnxruntime computes the program's codes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

import detent
from detent.demo.data import calibration_images, load_test
from detent.demo.network import load_network
from detent.errors import DetentError, ExportError, UnsupportedOpError
from detent.exporters import verify


class Net(nn.Module):
    """A convolution, what `then` makes of it, a mean and a linear layer."""

    def __init__(
        self, then: Callable[[Net, Tensor], Tensor], head: Callable[[Net, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 8, 1)
        self.strided = nn.Conv2d(8, 8, 3, padding=1, stride=2, bias=False)
        self.odd = nn.Conv2d(8, 8, 3, padding=0)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.flat = nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
        self.uneven = nn.Conv2d(8, 8, 3, padding=1, stride=(1, 2))
        self.wide = nn.Conv2d(8, 8, 3, padding=2)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.linear = nn.Linear(8, 5)
        self.large = nn.Linear(8 * 64, 5)
        self.last = nn.Linear(5, 4)
        self.then = then
        self.head = head or (lambda net, x: net.linear(x.mean((2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, self.then(self, torch.relu(self.first(x))))


TAKEN: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor] | None]] = {
    "residual": (lambda net, x: torch.relu(x + net.second(net.depthwise(x).relu())), None),
    "residual without relu": (lambda net, x: net.depthwise(x).relu() + net.second(x), None),
    "residual with relu6": (lambda net, x: functional.relu6(net.second(x) + net.depthwise(x)), None),
    "stride": (lambda net, x: net.strided(x).relu(), None),
    "relu6": (lambda net, x: functional.relu6(net.depthwise(x)), None),
    "no padding": (lambda net, x: net.odd(x), None),
    "average pool": (lambda net, x: functional.avg_pool2d(net.second(x), 8), lambda net, x: net.linear(x.flatten(1))),
    "adaptive pool": (lambda net, x: functional.adaptive_avg_pool2d(x, 1), lambda net, x: net.linear(x.flatten(1))),
    "flattened": (lambda net, x: net.second(x), lambda net, x: net.large(x.flatten(1))),
    "reshaped": (lambda net, x: net.second(x), lambda net, x: net.large(x.reshape(-1, 8 * 64))),
    "two linear layers": (lambda net, x: x, lambda net, x: net.last(net.linear(x.mean((2, 3))).relu())),
    "ends in pictures": (lambda net, x: x, lambda net, x: net.second(x)),
    "ends in a sum": (lambda net, x: x, lambda net, x: net.second(x) + net.depthwise(x)),
}  # fmt: skip


def images(count: int = 16, signed: bool = False) -> Tensor:
    found = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return found - 0.5 if signed else found


def quantized(model: nn.Module, x: Tensor, target: Any = "akida2", **options: Any) -> Any:
    torch.manual_seed(0)
    return detent.quantize(model.eval(), x, target=target, progress=False, **options)


def all_codes(path: Path, x: Tensor) -> dict[str, npt.NDArray[Any]]:
    """What onnxruntime computes at the end of each node."""
    proto = onnx.load(path)
    (end,) = proto.graph.output
    names = [node.output[0] for node in proto.graph.node]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != end.name)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(names, {session.get_inputs()[0].name: x.numpy()})
    return dict(zip(names, found, strict=True))


def compare(qmodel: Any, path: Path, x: Tensor) -> None:
    detent.export(qmodel, path, format="akida")
    run = detent.lower(qmodel, runtime="akida").run(x, all_tensors=True)
    found = all_codes(path, x)
    (entry,) = (one for one in qmodel.inputs)
    alike = {f"{entry.name}_codes": f"{entry.name}_quantized"}
    compared = 0
    for name, codes in run.codes.items():
        value = alike.get(name, f"{name}_quantized")
        if value in found:
            assert np.array_equal(found[value].reshape(codes.shape), codes), name
            compared += 1
    assert compared >= 4 or len(run.codes) == compared
    (values,) = run.outputs
    assert np.array_equal(found[qmodel.output_names[0]], values)
    assert np.unique(values).size >= 8


def stored(path: Path) -> dict[str, npt.NDArray[Any]]:
    return {entry.name: numpy_helper.to_array(entry) for entry in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", TAKEN)
def test_onnxruntime_computes_the_codes_of_the_program(name: str, signed: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    x = images(signed=signed)
    compare(quantized(Net(*TAKEN[name]), x), tmp_path / "model.onnx", x)


def test_verify_compares_the_codes_of_all_tensors(tmp_path: Path) -> None:
    x = images()
    qmodel = quantized(Net(*TAKEN["residual"]), x)
    detent.export(qmodel, tmp_path / "model.onnx", format="akida")
    found = verify(tmp_path / "model.onnx", qmodel, x, runtime="akida")
    assert found.missing == ()
    assert len(found.tensors) == len(detent.lower(qmodel).operations)
    assert all(tensor.differing == 0 for tensor in found.tensors)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_digits_network_of_both_widths(bits: int, tmp_path: Path) -> None:
    qmodel = detent.quantize(load_network(), calibration_images(), target="akida2", weights_bits=bits, progress=False)
    pictures, labels = load_test()
    compare(qmodel, tmp_path / "model.onnx", pictures)
    (values,) = detent.lower(qmodel).run(pictures).outputs
    assert (values.argmax(1) == labels.numpy()).mean() > (0.98 if bits == 8 else 0.9)


def test_numbers_are_those_the_converter_keeps(tmp_path: Path) -> None:
    qmodel = detent.quantize(load_network(), calibration_images(), target="akida2", progress=False)
    detent.export(qmodel, tmp_path / "model.onnx", format="akida")
    found = stored(tmp_path / "model.onnx")
    kinds = {name.rpartition("/")[2] for name in found}
    assert {"kernel", "bias", "scale", "shift", "max_value", "sum_a", "sum_b", "sum_shift", "pads"} <= kinds
    for name, values in found.items():
        kind = name.rpartition("/")[2]
        if kind == "kernel":
            assert values.dtype == np.int8
            assert values.min() >= -127
        elif kind == "scale":
            assert values.dtype == np.uint8
            assert values.min() >= 128
        elif kind in ("shift", "sum_shift", "sum_a", "sum_b", "step"):
            assert np.all(np.frexp(values.astype(np.float64))[0] == 0.5), name
        elif kind in ("bias", "max_value"):
            assert values.dtype == np.int32
            bits = 7 if kind == "bias" else 8
            magnitude = np.abs(values.astype(np.int64))
            up = np.maximum(0, np.ceil(np.log2(np.maximum(magnitude, 1)) + 1e-6) - bits)
            assert np.array_equal(np.round(values / 2.0**up) * 2.0**up, values), name


def test_functions_are_complete_and_named_as_their_nodes(tmp_path: Path) -> None:
    x = images()
    report = detent.export(quantized(Net(*TAKEN["residual"]), x), tmp_path / "model.onnx", format="akida")
    proto = onnx.load(report.path)
    assert {node.op_type for node in proto.graph.node} == {function.name for function in proto.functions}
    assert all(node.domain == "com.brainchip" and node.name for node in proto.graph.node)
    assert report.operators["QuantizedAddScaled"] == 1
    assert report.operators["QuantizedConv2DGlobalAvgPoolReLUScaled"] == 1
    assert any("cnn2snn.convert" in note for note in report.notes)
    assert any("changes a factor by up to" in note for note in report.notes)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata["detent.target"] == "akida2"


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    x = images()
    for name in ("a.onnx", "b.onnx"):
        torch.manual_seed(3)
        detent.export(quantized(Net(*TAKEN["residual"]), x), tmp_path / name, format="akida")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


REFUSED: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor] | None, str]] = {
    "grouped": (lambda net, x: net.grouped(x), None, "8 channels in 2 groups"),
    "dilated": (lambda net, x: net.dilated(x), None, "transposed or dilated"),
    "transposed": (lambda net, x: net.up(x), None, "this runtime has no conv_transpose2d"),
    "oblong": (lambda net, x: net.flat(x), None, "square kernels"),
    "uneven": (lambda net, x: net.uneven(x), None, "equal strides"),
    "too much padding": (lambda net, x: net.wide(x), None, "pads as much as keeps the size"),
    "windows": (lambda net, x: functional.avg_pool2d(x, 2), None, "not over windows"),
    "maximum": (lambda net, x: functional.max_pool2d(x, 2), None, "no MaximumPool"),
    "product": (lambda net, x: net.second(x) * net.depthwise(x), None, "mul"),
    "sigmoid": (lambda net, x: net.second(torch.sigmoid(net.second(x))), None, "sigmoid"),
    "difference": (lambda net, x: net.second(x) - net.depthwise(x), None, "sub"),
    "twice": (lambda net, x: net.second(x + x), None, "has no Table"),
    "slice": (lambda net, x: net.second(x)[:, :, ::2], None, "moves no values"),
    "flip": (lambda net, x: net.second(x.permute(0, 1, 3, 2)), None, "moves no values"),
    "mean at the end": (lambda net, x: net.second(x), lambda net, x: x.mean((2, 3)), "end in a layer or a sum"),
    "mean of rows": (lambda net, x: x.mean(2, keepdim=True), None, "all rows and columns"),
    "layer behind a mean": (lambda net, x: net.second(x.mean((2, 3), keepdim=True)), None, "in front of linear layers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_place_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    then, head, message = REFUSED[name]
    torch.manual_seed(3)
    qmodel = quantized(Net(then, head), images())
    with pytest.raises(DetentError, match=message) as caught:
        detent.export(qmodel, tmp_path / "model.onnx", format="akida")
    assert isinstance(caught.value, ExportError | UnsupportedOpError)
    assert caught.value.where
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("tflite", {}, "zero point"),
        ("onnxruntime", {}, "step of this input is no power of two"),
        ("akida1", {}, "activations of 8 bits, and this one has 4"),
        ("default", {"activation_bits": 16}, "activations of 8 bits, and this one has 16"),
        ("default", {"weights_bits": 16}, "step of this input"),
        ("default", {"weights_group_size": 3}, "steps for groups"),
        ("default", {"activation_per_channel": True}, "a step for each channel"),
    ],
)
def test_grids_of_other_targets_are_refused(target: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    x = images()
    qmodel = quantized(Net(*TAKEN["stride"]), x, target, **options)
    with pytest.raises(DetentError, match=message):
        detent.export(qmodel, tmp_path / "model.onnx", format="akida")
    assert not list(tmp_path.iterdir())
