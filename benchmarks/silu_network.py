"""Shift-negative correction on networks with SiLU: what it wins, alone and with other corrections.

    python benchmarks/silu_network.py [--data FOLDER] [--networks ...] [--keep FOLDER]

Two networks are trained here, which takes half a minute and some minutes; `--keep` holds their weights, and takes them
from there the next time. `digits-silu` is the demo's network with SiLU for every ReLU, trained on its training digits.
`resnet20-silu` is ResNet-20 of the data folder with SiLU for ReLU, trained to give the logits and stage outputs of the
original on the calibration images, moved and mirrored, without a label and without a test image.

The target is `imx500` with 4-bit activations added, as in `corrections.py`. `noise` is the squared error of the logits
over their variance, in percent: it tells levers apart where top-1 cannot. Rows go to `benchmarks/results/silu.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import detent
from corrections import PLAIN, WIDTHS, passes_of, target_with
from detent.demo.data import calibration_images, load_test, load_training
from detent.demo.network import DigitsNet
from harness import write_network
from networks import add_data_option, load_zoo

RATE = 2e-3
BATCH = 128
Loss = Callable[[Tensor, Tensor], Tensor]

ALONE = {"shift_negative": True}
EVERYWHERE = {"shift_negative": True, "shift_negative_ratio": 1.0}
"""Whatever the tail, where the error falls."""
ANALYTIC = {**PLAIN, "bias_correction": "analytic"}
LEVERS: dict[str, dict[str, Any]] = {
    "nothing": PLAIN,
    "shift-negative": {**PLAIN, **ALONE},
    "shift-negative, any tail": {**PLAIN, **EVERYWHERE},
    "analytic bias correction": ANALYTIC,
    "shift-negative + analytic": {**ANALYTIC, **ALONE},
    "shift-negative, any tail + analytic": {**ANALYTIC, **EVERYWHERE},
    "defaults": {},
    "defaults + shift-negative, any tail": EVERYWHERE,
}


@dataclass(frozen=True)
class Case:
    """A trained network and the images it is calibrated and judged with."""

    model: nn.Module
    batches: list[Tensor]
    images: Tensor
    labels: Tensor


class Staged(nn.Module):
    """The zoo's residual network with an activation of choice; gives what its stages put out, too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def stages(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Outputs of the three stages and the logits."""
        n: Any = self.network
        x = activation(n.bn1(n.conv1(x)))
        outputs = []
        for stage in (n.layer1, n.layer2, n.layer3):
            for block in stage:
                y = activation(block.bn1(block.conv1(x)))
                x = activation(block.bn2(block.conv2(y)) + block.shortcut(x))
            outputs.append(x)
        return [*outputs, n.linear(F.avg_pool2d(x, 8).flatten(1))]

    def forward(self, x: Tensor) -> Tensor:
        """Logits, with SiLU."""
        return self.stages(x, F.silu)[-1]


def moved(x: Tensor, pixels: int) -> Tensor:
    """All images moved by the same random step of at most so many pixels, with zeros where nothing is left."""
    dy, dx = torch.randint(0, 2 * pixels + 1, (2,)).tolist()
    return F.pad(x, (pixels,) * 4)[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, loss_of: Loss) -> None:
    """AdamW with a one-cycle rate, from a fixed seed."""
    torch.manual_seed(0)
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            loss = loss_of(images[rows], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"  epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    model.eval()


def digits(keep: Path | None, _: Any, images: int, samples: int) -> Case:
    """The demo's network with SiLU."""
    torch.manual_seed(0)
    model = DigitsNet()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU | nn.ReLU6):
            model.set_submodule(name, nn.SiLU())

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(moved(x, 1)), y, label_smoothing=0.05)

    load_or_train(model, keep, "digits-silu", lambda: train(model, *load_training(), 60, loss_of))
    x, y = load_test()
    return Case(model, list(calibration_images()[:samples].split(64)), x[:images], y[:images])


def resnet(keep: Path | None, zoo: Any, images: int, samples: int) -> Case:
    """ResNet-20 with SiLU, a pupil of the one with ReLU."""
    teacher, model = Staged(zoo.load("resnet20")).eval(), Staged(zoo.load("resnet20"))

    def loss_of(x: Tensor, _: Tensor) -> Tensor:
        mirrored = torch.rand(len(x)) < 0.5
        x = moved(torch.where(mirrored[:, None, None, None], x.flip(3), x), 4)
        with torch.no_grad():
            wanted = teacher.stages(x, F.relu)
        pairs = zip(model.stages(x, F.silu), wanted, strict=True)
        return torch.stack([F.mse_loss(got, want) / want.var() for got, want in pairs]).sum()

    load_or_train(model, keep, "resnet20-silu", lambda: train(model, *zoo.images("calibration"), 40, loss_of))
    x, y = zoo.images("test")
    return Case(model, zoo.calibration(samples, 64), x[:images], y[:images])


def load_or_train(model: nn.Module, keep: Path | None, name: str, train_it: Callable[[], None]) -> None:
    """Fill a network from its file, or train it and write the file."""
    path = None if keep is None else keep / f"{name}.safetensors"
    if path is not None and path.exists():
        model.load_state_dict(load_file(path))
        model.eval()
        return
    print(f"{name}: training", flush=True)
    train_it()
    if path is not None:
        save_file(model.state_dict(), path)


NETWORKS: dict[str, Callable[[Path | None, Any, int, int], Case]] = {"digits-silu": digits, "resnet20-silu": resnet}


def measure(case: Case, target: Path) -> dict[str, Any]:
    """Points of top-1 lost and noise of the logits by each lever at each pair of widths."""
    with torch.inference_mode():
        start = time.perf_counter()
        for batch in case.batches:
            case.model(batch)
        forward_s = time.perf_counter() - start
    wanted = logits_of(case.model, case.images)
    float_top1 = top1(wanted, case.labels)
    print(f"  float {float_top1:.2f}")
    rows = []
    for name, choices in LEVERS.items():
        row: dict[str, Any] = {"lever": name, "extra_passes": passes_of(choices, sum(map(len, case.batches)))}
        for kernels, activations in WIDTHS:
            widths = {"weights_bits": kernels, "activation_bits": activations}
            start = time.perf_counter()
            qmodel = detent.quantize(case.model, case.batches, target=target, progress=False, **widths, **choices)
            row["quantize_seconds"] = round(time.perf_counter() - start, 2)
            got, word = logits_of(qmodel, case.images), f"w{kernels}a{activations}"
            row[word] = round(float_top1 - top1(got, case.labels), 2)
            row[f"noise_{word}"] = round(100 * float((got - wanted).square().mean() / wanted.var()), 3)
            row[f"shifted_{word}"] = sum(value.endswith(".shifted") for value in qmodel.plan.activations)
        rows.append(row)
        print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return {
        "float_top1": round(float_top1, 2),
        "images": len(case.labels),
        "calibration_samples": sum(map(len, case.batches)),
        "forward_seconds": round(forward_s, 2),
        "rows": rows,
    }


@torch.inference_mode()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of all images."""
    return torch.cat([model(batch) for batch in images.split(500)])


def top1(logits: Tensor, labels: Tensor) -> float:
    """Percent of the images whose largest logit is at the label."""
    return 100 * float((logits.argmax(1) == labels).double().mean())


def main() -> None:
    """Train or load the networks asked for, measure them and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--samples", type=int, default=512, help="calibration images at most")
    parser.add_argument("--images", type=int, default=5000, help="test images at most")
    parser.add_argument("--keep", type=Path, help="folder for the weights of the trained networks")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data) if "resnet20-silu" in options.networks else None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "imx500-4.json"
        target.write_text(json.dumps(target_with("power_of_two")), encoding="utf-8")
        for network in options.networks:
            case = NETWORKS[network](options.keep, zoo, options.images, options.samples)
            print(network)
            found = measure(case, target)
            if not options.no_write:
                write_network("silu", network, found)


if __name__ == "__main__":
    main()
