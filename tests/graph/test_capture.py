"""Capture: the graph computes what the model computes, whatever form model and inputs have."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from detent.graph import Graph, capture
from tests.models import MODELS, build


@pytest.fixture(scope="module", params=sorted(MODELS))
def captured(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Graph]:
    torch.manual_seed(0)
    model = build(request.param)
    return request.param, model, capture(model, MODELS[request.param].inputs(4))


def assert_same(got: Any, wanted: Any) -> None:
    ours, spec = pytree.tree_flatten(got)
    theirs, wanted_spec = pytree.tree_flatten(wanted)
    assert spec == wanted_spec
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_graph_computes_what_the_model_computes(captured: tuple[str, nn.Module, Graph]) -> None:
    name, model, graph = captured
    assert graph.batch.dynamic == MODELS[name].dynamic
    for samples in (1, 4, 7) if graph.batch.dynamic else (4,):
        inputs = MODELS[name].inputs(samples)
        with torch.no_grad():
            assert_same(graph(*inputs), model(*inputs))
            assert_same(graph.copy()(*inputs), model(*inputs))


def test_names_are_unique_and_found(captured: tuple[str, nn.Module, Graph]) -> None:
    _, _, graph = captured
    names = [node.name for node in graph.nodes()]
    assert len(set(names)) == len(names)
    assert all(graph.find(name).node is node.node for name, node in zip(names, graph.nodes(), strict=True))
    assert all(name in str(graph) for name in names)


def test_every_operator_is_functional(captured: tuple[str, nn.Module, Graph]) -> None:
    _, _, graph = captured
    for node in graph.module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        assert schema is None or not schema.is_mutable, node


def test_the_batch_is_found_in_every_value(captured: tuple[str, nn.Module, Graph]) -> None:
    name, _, graph = captured
    flat = graph.flatten(MODELS[name].inputs(4))
    full = _values(graph, flat)
    # Replacing the last two samples leaves what belongs to the first two as it was.
    others = graph.flatten(MODELS[name].inputs(4))
    mixed = [
        torch.cat([a[:2], b[2:]]) if spec.batch_axis == 0 else a
        for a, b, spec in zip(flat, others, graph.inputs, strict=True)
    ]
    changed = _values(graph, mixed)
    for node in graph.nodes():
        if node.batch is None or not isinstance(full[node.name], Tensor):
            continue
        ours, theirs = (node.batch.samples_first(values[node.name]) for values in (full, changed))
        assert ours.shape[0] == 4
        torch.testing.assert_close(ours[:2], theirs[:2])
        if node.is_float and node.op is not None and node.op.kind == "linear":
            assert not torch.equal(ours[2:], theirs[2:])


def _values(graph: Graph, flat: list[Tensor]) -> dict[str, Any]:
    """The value of every node, by name, for a batch given as a list of tensors."""
    inputs = {spec.name: tensor for spec, tensor in zip(graph.inputs, flat, strict=True)}
    values: dict[Any, Any] = {}
    with torch.no_grad():
        for node in graph.module.graph.nodes:
            if node.op == "placeholder":
                values[node] = inputs[node.target]
            elif node.op == "get_attr":
                values[node] = graph.tensor(node)
            elif node.op == "call_function":
                args = torch.fx.node.map_arg(node.args, values.__getitem__)
                values[node] = node.target(*args, **torch.fx.node.map_arg(node.kwargs, values.__getitem__))
    return {node.name: values[node.node] for node in graph.nodes()}


def test_layers_are_named_after_their_modules() -> None:
    graph = capture(build("conv_chain"), MODELS["conv_chain"].inputs(2))
    names = [node.name for node in graph.nodes()]
    assert names == ["x", *(f"features.{i}" for i in range(8)), "avg_pool", "flatten", "head"]
    assert graph.find("features.4").layer == "features.4"
    assert graph.find("features.4").weight_name == "features.4.weight"


def test_function_calls_are_named_after_their_caller_and_reuse_is_numbered() -> None:
    reused = [node.name for node in capture(build("reused"), MODELS["reused"].inputs(2)).nodes()]
    assert reused == ["x", "conv", "relu", "conv:1", "relu:1", "conv:2", "relu:2"]
    residual = [node.name for node in capture(build("residual"), MODELS["residual"].inputs(2)).nodes()]
    assert residual == ["x", "conv1", "bn1", "relu", "conv2", "add", "relu:1"]
    nested = nn.Sequential(build("residual"), build("residual"))
    assert "1.add" in capture(nested, MODELS["residual"].inputs(2))


def test_source_lines_are_the_users() -> None:
    graph = capture(build("residual"), MODELS["residual"].inputs(2))
    source = graph.find("conv1").source
    assert source is not None
    assert "models.py" in source
    assert "y = F.relu(self.bn1(self.conv1(x)))" in source
    assert "y += x" in str(graph.find("add").source)


def test_tied_weights_share_one_tensor() -> None:
    graph = capture(build("transformer"), MODELS["transformer"].inputs(2))
    embedding, output = graph.find("embedding"), graph.find("linear")
    assert embedding.kind == "embedding"
    assert embedding.weight_name == output.weight_name == "embedding.weight"


def test_the_users_module_is_left_alone() -> None:
    model = build("conv_chain").train()
    model.features[1].eval()
    flags = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    graph = capture(model, MODELS["conv_chain"].inputs(2))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert any("training mode" in note for note in graph.notes)
    assert graph.tensor(graph.find("head").weight) is model.head.weight
    x = torch.randn(3, 3, 8, 8)
    assert_same(graph(x), model.eval()(x))


FORMS: dict[str, Any] = {
    "tensor": torch.randn(1, 3, 8, 8),
    "array": np.zeros((2, 3, 8, 8), np.float32),
    "tuple": (torch.randn(2, 3, 8, 8),),
    "list": [torch.randn(2, 3, 8, 8)],
    "by_name": {"x": torch.randn(2, 3, 8, 8)},
    "with_labels": (torch.randn(2, 3, 8, 8), torch.tensor([1, 0])),
    "list_with_labels": [torch.randn(2, 3, 8, 8), torch.tensor([1, 0])],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_example_inputs(form: str) -> None:
    graph = capture(build("conv_chain"), FORMS[form])
    assert graph.batch.dynamic
    assert [spec.name for spec in graph.inputs] == ["x"]
    assert any("labels" in note for note in graph.notes) == form.endswith("labels")


def test_dict_inputs_are_matched_by_key() -> None:
    graph = capture(build("dict_input"), MODELS["dict_input"].inputs(2)[0])
    (batch,) = MODELS["dict_input"].inputs(3)
    assert [(spec.name, spec.key) for spec in graph.inputs] == [("batch_image", "image"), ("batch_scalars", "scalars")]
    backwards = dict(reversed(batch.items()))
    assert [t.dim() for t in graph.flatten(backwards)] == [4, 2]
    assert_same(graph(batch), build("dict_input")(batch))


def test_an_input_without_samples_is_not_batched() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
            return x * mask * scale

    graph = capture(Masked(), (torch.randn(2, 3, 5), torch.ones(3, 5), torch.tensor(2.0)))
    assert [spec.batch_axis for spec in graph.inputs] == [0, None, None]
    assert graph(torch.randn(6, 3, 5), torch.ones(3, 5), torch.tensor(2.0)).shape == (6, 3, 5)


def test_a_fixed_batch_is_noted_with_its_reason() -> None:
    graph = capture(build("fixed_batch"), MODELS["fixed_batch"].inputs(4))
    (note,) = (note for note in graph.notes if "batch is fixed to 4" in note)
    assert "failed (" in note
    layouts = {node.name: node.batch for node in graph.nodes()}
    assert layouts["transpose"] is not None
    assert layouts["transpose"].axis == 1
    assert layouts["linear"] is not None
    assert layouts["linear"].axis == 1


def test_static_on_request_has_no_note() -> None:
    graph = capture(build("residual"), MODELS["residual"].inputs(3), dynamic_batch=False)
    assert graph.batch.size == 3
    assert not graph.batch.dynamic
    assert not graph.notes


def test_a_single_sample_may_have_any_layout() -> None:
    graph = capture(build("residual"), MODELS["residual"].inputs(1), dynamic_batch=False)
    assert all(node.batch is not None and node.batch.ordered for node in graph.nodes())


def test_values_that_mix_samples_are_noted() -> None:
    class Centered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)).relu()

    graph = capture(Centered(), torch.randn(4, 5))
    layout = graph.find("relu").batch
    assert layout is not None
    assert layout.outer is None
    assert any("depends on several samples" in note for note in graph.notes)


def test_a_role_less_operator_is_noted_once() -> None:
    graph = capture(build("recurrent"), MODELS["recurrent"].inputs(2))
    assert graph.find("lstm").op is None
    (note,) = (note for note in graph.notes if "stays in float" in note)
    assert note.startswith("aten.lstm.input in lstm ")


def test_buffers_that_the_model_writes_keep_their_values() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    model = Counting()
    graph = capture(model, torch.ones(2, 3))
    assert any("calls" in note for note in graph.notes)
    assert torch.equal(graph(torch.ones(2, 3)), graph(torch.ones(2, 3)))
    assert model.calls == 0


def test_exported_programs_of_every_kind() -> None:
    model, (x,) = build("conv_chain"), MODELS["conv_chain"].inputs(2)
    dynamic = ({0: torch.export.Dim("n")},)
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic)
    strict = torch.export.export(model, (x,), dynamic_shapes=dynamic, strict=True)
    for given in (program, strict):
        graph = capture(given)
        assert graph.batch.dynamic
        assert graph.find("features.4").kind == "conv"
        assert_same(graph(x), model(x))


def test_a_program_exported_in_training_mode_is_evaluated() -> None:
    model, (x,) = build("conv_chain"), MODELS["conv_chain"].inputs(4)
    graph = capture(torch.export.export(model.train(), (x,)))
    assert any("exported in training mode" in note for note in graph.notes)
    before = model.features[1].running_mean.clone()
    assert_same(graph(x), model.eval()(x))
    assert torch.equal(before, model.features[1].running_mean)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_decomposed_program_keeps_its_roles() -> None:
    model, (x,) = build("conv_chain"), MODELS["conv_chain"].inputs(2)
    program = torch.export.export(model, (x,)).run_decompositions()
    graph = capture(program)
    kinds = [node.kind for node in graph.nodes() if node.kind in ("conv", "norm", "matmul", "linear")]
    assert kinds[:4] == ["conv", "norm", "conv", "norm"]
    assert kinds[-1] in ("matmul", "linear")
    head = next(node for node in graph.nodes() if node.kind in ("matmul", "linear"))
    assert head.weight is not None
    assert head.macs == 12 * 5
    assert_same(graph(x), model(x))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, self.left, self.right, (x,)) + 1.0


def test_a_cond_runs_in_float() -> None:
    model = Branches().eval()
    graph = capture(model, torch.randn(2, 4))
    assert any(note.startswith("cond in the model's forward has no role") for note in graph.notes)
    assert graph.fingerprint() == copy.deepcopy(graph).fingerprint()
    for x in (torch.ones(3, 4), -torch.ones(3, 4)):
        assert_same(graph.copy()(x), model(x))


class Options(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None = None, *, factor: int = 2, **more: Tensor) -> Tensor:
        x = x if y is None else x + y
        return x * factor + more.get("offset", 0)


@pytest.mark.parametrize(
    ("example", "tensors"),
    [
        ((torch.randn(2, 4), None), ["x"]),
        ((torch.randn(2, 4), torch.randn(2, 4)), ["x", "y"]),
        ({"x": torch.randn(2, 4), "factor": 3}, ["x"]),
        ({"x": torch.randn(2, 4), "offset": torch.randn(2, 4)}, ["x", "offset"]),
    ],
    ids=["none", "optional", "number", "keywords"],
)
def test_optional_inputs(example: Any, tensors: list[str]) -> None:
    graph = capture(Options(), example)
    # Torch cannot describe dynamic sizes of inputs that a forward takes as **more; that is noted.
    assert graph.batch.dynamic != any("batch is fixed" in note for note in graph.notes)
    assert graph.batch.dynamic == ("offset" not in tensors)
    assert [spec.name for spec in graph.inputs] == tensors
    wanted = Options()(**example) if isinstance(example, dict) else Options()(*example)
    assert_same(graph(**example) if isinstance(example, dict) else graph(*example), wanted)


def test_fingerprints_tell_models_apart() -> None:
    inputs = MODELS["residual"].inputs(2)
    model = build("residual")
    first, again = capture(model, inputs), capture(build("residual"), MODELS["residual"].inputs(3))
    assert first.fingerprint() == again.fingerprint() == first.copy().fingerprint()
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] += 1e-3
    assert capture(model, inputs).fingerprint() != again.fingerprint()
    assert capture(build("reused"), inputs).fingerprint() != again.fingerprint()


def test_deep_copies_share_nothing() -> None:
    graph = capture(build("transformer"), MODELS["transformer"].inputs(2))
    twin = copy.deepcopy(graph)
    assert twin.fingerprint() == graph.fingerprint()
    ours = {t.data_ptr() for t in graph.module.state_dict().values()}
    assert not ours & {t.data_ptr() for t in twin.module.state_dict().values()}
    assert twin.find("embedding").weight_name == twin.find("linear").weight_name
