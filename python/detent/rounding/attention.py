"""How much an error of a sample means at the outputs, at values on the way: sample-layer attention.

For a random direction d of the outputs one backward pass gives J^T d at all values at once; its mean square over the
entries of a sample, over several directions, is that sample's mean diagonal entry of the Hessian of the squared error
at the outputs. (Gordon et al. 2023, EPTQ, arXiv:2309.11531, section 3.2, takes the largest channel, not the mean.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.errors import CalibrationError
from detent.graph import Graph
from detent.graph.executor import for_any_layout
from detent.rounding.block_data import NetworkInputs
from detent.rounding.learning_network import BlockRun

__all__ = ["attention_of_samples"]

_DIRECTIONS: Final = 4

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def attention_of_samples(
    graph: Graph,
    values: Sequence[str],
    inputs: NetworkInputs,
    parts: Sequence[Integers],
    pool: ThreadPoolExecutor,
    *,
    seed: int,
) -> Mapping[str, Floats]:
    """The weight of each sample at each value, mean 1; values that do not lead to an output are left out.

    Args:
        graph: the float network.
        values: names of values on the way, with the samples first along their batch axis.
        inputs: of all samples.
        parts: places of samples that run together.
        pool: threads that use one of torch's threads each.
        seed: of the directions.

    Raises:
        CalibrationError: a gradient is not finite.
    """
    outputs = {item.name: item.node for item in graph.float_outputs()}
    nodes = {name: graph.find(name).node for name in values}
    run = BlockRun(
        graph.module,
        [],
        {**nodes, **outputs},
        graph.name_of,
        gradients=True,
        functions={node: _tracked(node) for node in nodes.values() if node.op == "call_function"},
    )
    axes = {name: layout.axis for name in values if (layout := graph.find(name).batch) is not None}

    def squares(samples: Integers) -> dict[str, npt.NDArray[np.float64]]:
        found = run(inputs.take(samples), [])
        random = torch.Generator().manual_seed(int(np.random.default_rng([seed, int(samples[0])]).integers(2**62)))
        totals = {name: np.zeros(len(samples)) for name in values}
        ends = [found[name] for name in outputs if found[name].requires_grad]
        for _ in range(_DIRECTIONS if ends else 0):
            along = [torch.randint(0, 2, end.shape, generator=random) * 2.0 - 1 for end in ends]
            gradients = torch.autograd.grad(
                ends,
                [found[name] for name in values],
                [one.to(end.device) for one, end in zip(along, ends, strict=True)],
                retain_graph=True,
                allow_unused=True,
            )
            for name, gradient in zip(values, gradients, strict=True):
                if gradient is not None:
                    totals[name] += gradient.movedim(axes[name], 0).flatten(1).double().square().mean(1).cpu().numpy()
        return totals

    each = list(pool.map(squares, parts))
    weights = {}
    for name in values:
        total = np.concatenate([one[name] for one in each])
        if not np.isfinite(total).all():
            raise CalibrationError(
                "a gradient of the outputs is NaN or infinite",
                where=name,
                remedy='learn with attention "none", or look for such values in the data',
            )
        if total.any():
            weights[name] = (total / total.mean()).astype(np.float32)
    return weights


def _tracked(node: fx.Node) -> Callable[..., Any]:
    """What computes a node, with a result that gradients are taken with respect to."""
    function = for_any_layout(node.target)  # type: ignore[arg-type]

    def instead(*arguments: Any, **named: Any) -> Any:
        value = function(*arguments, **named)
        return value if value.requires_grad else value.requires_grad_()

    return instead
