"""Trains the demo's network from scratch: `python -m detent.demo.train OUT.safetensors`.

Deterministic on one machine: one thread, fixed seed. Half a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from detent.demo.data import load_test, load_training
from detent.demo.network import DigitsNet, accuracy
from detent.records.files import write_atomically

__all__ = ["train"]

SEED: Final = 20
EPOCHS: Final = 60
BATCH: Final = 64
PEAK_RATE: Final = 1e-2
WEIGHT_DECAY: Final = 1e-3


def train(epochs: int = EPOCHS) -> DigitsNet:
    """Train on the training split only; returns the network in evaluation mode.

    AdamW with a one-cycle rate (arXiv:1708.07120); images are shifted by up to one pixel.
    """
    torch.manual_seed(SEED)
    images, labels = load_training()
    network = DigitsNet().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    batches = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(images)), BATCH):
            logits = network(_shifted(images[chosen]))
            loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


def _shifted(images: Tensor) -> Tensor:
    """The images `[N, 1, 8, 8]`, all moved by the same random step of -1, 0 or 1 pixel along each axis."""
    row, column = torch.randint(0, 3, (2,)).tolist()
    return functional.pad(images, (1, 1, 1, 1))[:, :, row : row + 8, column : column + 8]


def main() -> None:
    """Train, report, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    network = train()
    figures = {
        "train_top1": round(accuracy(network, load_training()), 4),
        "test_top1": round(accuracy(network, load_test()), 4),
    }
    print(f"{figures} after {time.perf_counter() - start:.1f} s")  # noqa: T201 - a script
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    # One entry, because safetensors writes several in random order: the same training gives the same bytes.
    metadata = {"training": json.dumps({"seed": SEED, "epochs": EPOCHS, **figures})}
    write_atomically(out, save(tensors, metadata=metadata))


if __name__ == "__main__":
    main()
