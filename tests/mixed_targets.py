"""Target files that offer a choice of widths for kernels and activations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detent

__all__ = ["write_target"]


def write_target(
    folder: Path, kernels: Sequence[int] = (8, 4, 2), values: Sequence[int] = (8, 4), **rules: Any
) -> Path:
    """A file that extends `imx500` by widths of kernels and of activations.

    Args:
        folder: where it goes.
        kernels: widths of kernels, the usual one first.
        values: widths of activations.
        rules: what else the rule of every operation says, e.g. `input_bits="output"`.
    """
    activations = {"kind": "power_of_two", "bits": list(values), "signed": None}
    weights = {"kind": "symmetric", "bits": list(kernels)}
    own = {"activations": activations, "input_bits": None, **rules}
    named = (("conv", weights), ("conv_transposed", weights), ("linear", weights), ("embedding", weights))
    entry = {
        "schema_version": 1,
        "extends": "imx500",
        "name": "mixed",
        "version": "1",
        "description": "imx500 with a choice of widths.",
        "sources": [],
        "channel_multiples": dict.fromkeys(range(1, 17), 1),  # small networks would be padding for the most part
        "defaults": {"weights": None, "bias_bits": None, "activations": activations, "input_bits": None},
        "ops": {
            **dict.fromkeys(detent.load_target("imx500").ops, own),
            **{op: {**own, "weights": chosen} for op, chosen in named},
        },
    }
    path = folder / f"mixed_{'_'.join(map(str, (*kernels, 'a', *values, *rules)))}.json"
    path.write_text(json.dumps(entry), encoding="utf-8")
    return path
