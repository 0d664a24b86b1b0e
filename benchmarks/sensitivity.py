"""Probe scores against what each tensor's rounding truly changes, and what they cost, as residual networks deepen.

    python benchmarks/sensitivity.py [--data FOLDER] [--networks resnet20 resnet32 resnet56] [--samples 32] [--no-write]

The truth is a plain loop: the whole network with one tensor quantized and all others float, run on the same 32 images
for each tensor and width. Its time is that of the forward passes and comparisons, not of building the networks. Where
only kernels have a choice the loop leaves activations out; probe and measured scores always have them. Rivals take
turns within one run. ResNet-20 is trained; deeper networks are random where the data folder has no checkpoint for them,
with batch norms that have seen the calibration images. Rows go to `benchmarks/results/sensitivity.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import detent
from corrections import target_with
from detent.graph.placement import Placement
from detent.graph.policy import place_as_asked
from detent.records.sensitivity import SensitivityTable, TensorSensitivity
from detent.sensitivity import score_by_measuring, score_by_probes
from detent.statistics import first_samples
from harness import time_in_turns, write_network
from networks import add_data_option, load_zoo

DEPTHS = ("resnet20", "resnet32", "resnet56")
CHOICES = {
    "3 kernel widths": ((8, 8), (4, 8), (2, 8)),
    "3 kernel x 2 activation widths": ((8, 8), (4, 4), (2, 4)),
}
"""Bits of kernels and activations, plan by plan; every width in one of them is a candidate."""
COST_GOALS = {("resnet20", "3 kernel widths"): 1 / 4, ("resnet56", "3 kernel x 2 activation widths"): 1 / 12}
"""Seconds of probe scores, in parts of the plain loop's."""
AGREEMENT_GOALS = {8: 0.95, 4: 0.95, 2: 0.9}
"""Least correlation of the logarithms, by width."""

Doubles = npt.NDArray[np.float64]
PROBES = detent.MixedPrecisionConfig().probes


@dataclass(frozen=True, kw_only=True)
class Case:
    """A calibrated network with the plans of one choice of widths, and the samples it is scored on."""

    graph: detent.Graph
    placement: Placement
    plans: list[detent.QuantPlan]
    batches: list[list[torch.Tensor]]

    @property
    def whole(self) -> torch.Tensor:
        """All samples in one batch."""
        return torch.cat([batch[0] for batch in self.batches])

    def probed(self) -> SensitivityTable:
        """Probe scores, with the defaults of `detent.choose_widths`."""
        return score_by_probes(self.graph, self.placement, self.plans, self.batches, probes=PROBES)

    def measured(self) -> SensitivityTable:
        """Measured scores of the outputs."""
        return score_by_measuring(self.graph, self.placement, self.plans, self.batches, points="outputs")


def network(zoo: Any, name: str, data: Path, batches: list[torch.Tensor]) -> tuple[torch.nn.Module, bool]:
    """A network, and whether it is trained."""
    if (data / f"{name}.safetensors").is_file():
        return zoo.load(name), True
    torch.manual_seed(0)
    model: torch.nn.Module = zoo.NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        for batch in batches:
            model.train()(batch)
    return model.eval(), False


def cases(model: torch.nn.Module, batches: list[torch.Tensor], target: Path, samples: int) -> dict[str, Case]:
    """The network with the plans of each choice."""
    graph = detent.transform(detent.capture(model, batches[0]), target=target)
    stats = detent.calibrate(graph, batches, progress=False, channels=True)
    moments = detent.collect_moments(graph, batches, progress=False)
    placement = place_as_asked(graph, detent.load_target(target), detent.QuantizationConfig())
    few = first_samples(graph, batches, samples, parts=2)

    def planned(widths: tuple[int, int]) -> detent.QuantPlan:
        kernels, values = widths
        return detent.plan(graph, stats, target=target, moments=moments, weights_bits=kernels, activation_bits=values)

    known = {widths: planned(widths) for several in CHOICES.values() for widths in several}
    return {
        name: Case(graph=graph, placement=placement, plans=[known[widths] for widths in several], batches=few)
        for name, several in CHOICES.items()
    }


def only(plan: detent.QuantPlan, tensor: TensorSensitivity) -> detent.QuantPlan:
    """The plan with everything but one tensor left float."""
    kernel = tensor.role == "weights"
    float_kernel = {"grid": None, "gain": None, "bias_bits": None, "error": None, "metric": None}
    float_value = {"grid": None, "same_as": None, "error": None, "metric": None}
    return replace(
        plan,
        weights={
            layer: entry if kernel and layer in tensor.members else replace(entry, **float_kernel)
            for layer, entry in plan.weights.items()
        },
        activations={
            value: entry if not kernel and (entry.same_as or value) in tensor.members else replace(entry, **float_value)
            for value, entry in plan.activations.items()
        },
        bias_corrections={
            name: found for name, found in plan.bias_corrections.items() if kernel and name in tensor.members
        },
    )


def bits_in(plan: detent.QuantPlan, tensor: TensorSensitivity) -> int:
    """The width that a plan gives a tensor."""
    table = plan.weights if tensor.role == "weights" else plan.activations
    grid = table[tensor.name].grid
    if grid is None:
        raise SystemExit(f"{tensor.name} has no grid in the plan")
    return grid.bits


def loop(case: Case, tensors: list[TensorSensitivity], wanted: torch.Tensor) -> tuple[list[Doubles], float, int]:
    """Relative squared change of the outputs by each width of each tensor, with seconds and forward passes."""
    x, energy = case.whole, float(wanted.square().sum(dtype=torch.float64))
    found, seconds, passes = [], 0.0, 0
    for tensor in tensors:
        plans = {bits_in(plan, tensor): plan for plan in reversed(case.plans)}
        changes = []
        for bits in tensor.bits:
            quantized = detent.apply(case.graph, only(plans[bits], tensor))
            start = time.perf_counter()
            with torch.inference_mode():
                changes.append(float((quantized(x) - wanted).square().sum(dtype=torch.float64)) / energy)
            seconds += time.perf_counter() - start
            passes += 1
        found.append(np.array(changes))
    return found, seconds, passes


def verify(table: SensitivityTable, tensors: list[TensorSensitivity], truth: list[Doubles]) -> None:
    """Measured scores are what the loop found, but for values at the edge between two codes."""
    for one, true in zip(tensors, truth, strict=True):
        if not np.allclose(table.find(one.name, one.role).scores, true, rtol=0.02, atol=1e-12):
            raise SystemExit(f"measured scores of {one.name} ({one.role}) are not those of the plain loop")


def ranks(values: Doubles) -> Doubles:
    """Places in ascending order."""
    found: Doubles = np.argsort(np.argsort(values)).astype(np.float64)
    return found


def agreement(table: SensitivityTable, truth: list[Doubles]) -> list[dict[str, Any]]:
    """Correlation of logarithms and of ranks over the tensors, for each role and width."""
    rows = []
    for role in ("weights", "activations"):
        for bits in sorted({bits for one in table if one.role == role for bits in one.bits}, reverse=True):
            both = [
                (one.score(bits), float(true[one.bits.index(bits)]))
                for one, true in zip(table, truth, strict=True)
                if one.role == role and bits in one.bits
            ]
            # A tensor without any error, as where rounding is exact, has no logarithm.
            scores, changes = np.array([pair for pair in both if min(pair) > 0]).T
            log = float(np.corrcoef(np.log(scores), np.log(changes))[0, 1])
            rows.append(
                {
                    "role": role,
                    "bits": bits,
                    "tensors": len(scores),
                    "without_error": len(both) - len(scores),
                    "log_correlation": round(log, 4),
                    "rank_correlation": round(float(np.corrcoef(ranks(scores), ranks(changes))[0, 1]), 4),
                    "score_by_truth": round(float(np.exp(np.log(scores / changes).mean())), 3),
                    "goal": AGREEMENT_GOALS[bits],
                    "met": log >= AGREEMENT_GOALS[bits],
                }
            )
    return rows


def forward(case: Case, x: torch.Tensor) -> torch.Tensor:
    """One float forward pass."""
    with torch.inference_mode():
        found: torch.Tensor = case.graph.module(x)
    return found


def costs(
    name: str, choice: str, case: Case, rounds: int, loop_rounds: int
) -> tuple[list[dict[str, Any]], list[Doubles]]:
    """Seconds of each way to score, in turns, with the ratio to the plain loop; and what the loop found."""
    kernels_only = choice == "3 kernel widths"  # activations have one width then, and nobody's loop runs it
    tensors = [one for one in case.probed() if not kernels_only or one.role == "weights"]
    x = case.whole
    with torch.inference_mode():
        wanted = case.graph.module(x)
    found: list[Doubles] = []
    turns, passes = [], 0
    rivals = {"forward": lambda: forward(case, x), "probes": case.probed, "measured": case.measured}
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(loop_rounds):
        found, taken, passes = loop(case, tensors, wanted)
        turns.append(taken)
        # The rivals' own turns are short: several of them for each of the loop's.
        one = time_in_turns(rivals, rounds=rounds, warmups=0)
        for rival, value in one.items():
            seconds[rival].append(value)
    verify(case.measured(), tensors, found)
    times = {rival: statistics.median(values) for rival, values in seconds.items()}
    plain = statistics.median(turns)
    rows = []
    for rival, value in (("plain loop", plain), ("measured", times["measured"]), ("probes", times["probes"])):
        goal = COST_GOALS.get((name, choice)) if rival == "probes" else None
        rows.append(
            {
                "choice": choice,
                "scores": rival,
                "seconds": round(value, 4),
                "forward_passes": round(value / times["forward"], 1),
                "of_plain_loop": round(value / plain, 4),
                "candidates_of_plain_loop": passes,
                "goal": None if goal is None else round(goal, 4),
                "met": None if goal is None else value / plain <= goal,
            }
        )
    return rows, found


def table_of(zoo: Any, name: str, target: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one network."""
    batches = zoo.calibration(options.calibration, 64)
    model, trained = network(zoo, name, options.data, batches)
    print(f"{name}, {'trained' if trained else 'random, batch norms from the calibration images'}", flush=True)
    rows, agreements = [], []
    for choice, case in cases(model, batches, target, options.samples).items():
        more, truth = costs(name, choice, case, options.rounds, options.loop_rounds)
        rows += more
        if choice == list(CHOICES)[-1]:
            agreements = agreement(case.probed(), truth)
        show([*more, *agreements])
    return {
        "trained": trained,
        "samples": options.samples,
        "probes": PROBES,
        "calibration_samples": options.calibration,
        "agreement": agreements,
        "cost": rows,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows."""
    for row in rows:
        print("  " + "  ".join(f"{key} {value}" for key, value in row.items() if value is not None), flush=True)


def main() -> None:
    """Measure the networks asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=DEPTHS)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop-rounds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target.json"
        target.write_text(json.dumps(target_with("power_of_two")), encoding="utf-8")
        for name in options.networks:
            found = table_of(zoo, name, target, options)
            if not options.no_write:
                write_network("sensitivity", name, found)


if __name__ == "__main__":
    main()
