"""Small networks of each kind of layer, and the exact Hessians of their tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call

import detent
from detent.graph.placement import Placement, place

__all__ = ["CASES", "build", "exact"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 3, padding=1)
        self.act = nn.SiLU()
        self.conv2 = nn.Conv2d(2, 2, 3, padding=1)
        self.head = nn.Linear(2 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.conv2(self.act(self.conv1(x)))).flatten(1))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(self.conv(x))).mean(dim=(2, 3))


Make = Callable[[], nn.Module]
CASES: dict[str, tuple[Make, tuple[int, ...], list[str], list[str]]] = {
    # network, shape of a sample, kernels, values
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4)),
        (2, 4, 4),
        ["0", "3"],
        ["0", "1"],
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Flatten()),
        (3, 4, 4),
        ["0"],
        ["1"],
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.GELU(), nn.Flatten()), (4, 4, 4), ["0"], ["0"]),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (2, 5), ["0", "2"], ["0", "1"]),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 4, 3, groups=2), nn.Tanh(), nn.Conv1d(4, 2, 3)),
        (2, 4),
        ["0", "2"],
        ["1"],
    ),
    "residual": (Residual, (2, 3, 3), ["conv1", "conv2", "head"], ["act", "conv1"]),
    "shared": (Shared, (2, 4, 4), ["conv"], ["act"]),
}


def build(name: str, samples: int, **options: Any) -> tuple[nn.Module, Tensor, detent.Graph, Placement]:
    make, shape, _, _ = CASES[name]
    torch.manual_seed(3)
    model = make().eval()
    data = torch.randn(samples, *shape)
    graph = detent.capture(model, data[: options.pop("example", 2)], **options)
    return model, data, graph, place(graph, detent.load_target("default"))


def cost(out: Tensor, reference: Tensor, loss: str) -> Tensor:
    if loss == "outputs":
        return (out - reference).square().sum() / 2
    target = reference.softmax(-1)
    return (target * (target.log() - out.log_softmax(-1))).sum()


def exact(model: nn.Module, data: Tensor, tensor: tuple[str, str], loss: str) -> Tensor:
    """Mean over samples of the diagonal of the Hessian of half the squared change, or of the divergence, in float64."""
    name, role = tensor
    model, data = copy.deepcopy(model).double(), data.double()
    parameters = dict(model.named_parameters())
    total: Any = 0
    for x in data.split(1):
        reference = model(x).detach()
        if role == "weights":
            at = parameters[f"{name}.weight"].detach()

            def run(w: Tensor, x: Tensor = x) -> Tensor:
                return functional_call(model, {**parameters, f"{name}.weight": w}, (x,))

        else:
            seen: list[Tensor] = []
            shift: list[Any] = [0]
            module = model.get_submodule(name)
            handle = module.register_forward_hook(lambda m, i, o: (seen.append(o), o + shift[0])[1])  # noqa: B023
            model(x)
            at = torch.zeros_like(seen[0])

            def run(delta: Tensor, x: Tensor = x, shift: list[Any] = shift) -> Tensor:
                shift[0] = delta
                return model(x)

        found = hessian(lambda value: cost(run(value), reference, loss), at, vectorize=True)  # noqa: B023
        total = total + found.reshape(at.numel(), -1).diagonal().reshape(at.shape)
        if role == "activations":
            handle.remove()
    mean = total.detach() / len(data)
    energy = model(data).detach().square().sum() / len(data) if loss == "outputs" else 1.0
    return mean / energy if role == "weights" else mean[0] / energy
