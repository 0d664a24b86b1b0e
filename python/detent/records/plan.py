"""`QuantPlan`: for every tensor its grid. Model + plan = quantized model.

The plan is JSON that a person can read and edit; it is also the per-layer configuration file. Keys of `activations` are
value names of the graph, keys of `weights` are layer names. Changing `bits`, `threshold`, `lower` or `upper` is enough:
steps and zero points follow (see `Grid`). Setting an entry to `"float"` keeps that tensor in float. `"frozen": true` in
an entry makes later stages and later plans take it as it is. `codes` hold a kernel that was not rounded to nearest;
remove them where its grid is changed. `bias_corrections` may be edited, or left out. `rules` are
those the plan was made with; editing them changes nothing until it is made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from detent._registry import unknown_name
from detent._validation import parse_json
from detent.config import Preprocessing
from detent.errors import ConfigError, FormatError
from detent.records.correction import BiasCorrection
from detent.records.files import read_text, write_atomically
from detent.records.grid import Grid
from detent.records.rules import Rule, rules_from_data
from detent.records.tensor_plan import TensorPlan
from detent.records.widths import Widths

__all__ = ["PER_CHANNEL", "QuantPlan", "TensorPlan", "grid_of", "metric_of"]

PER_CHANNEL: Final = " within each channel's range"
"""Ends the metric of an activation whose limits were narrowed to those of its channels."""

_FORMAT: Final = "detent.plan"
_VERSION: Final = 1
_TABLES: Final = ("activations", "weights", "bias_corrections")
_KEYS: Final = (
    "format",
    "version",
    "target",
    "graph",
    "samples",
    "config",
    "rules",
    "notes",
    "preprocessing",
    "widths",
    *_TABLES,
)
_OPTIONAL: Final = frozenset({"rules", "preprocessing", "widths", "bias_corrections"})


def grid_of(activations: Mapping[str, TensorPlan], name: str) -> Grid | None:
    """The grid of an activation among the entries of a plan, following `same_as`; None if it stays in float."""
    entry = activations[name]
    return activations[entry.same_as].grid if entry.same_as is not None else entry.grid


def metric_of(entry: TensorPlan) -> str | None:
    """The metric an entry was chosen by, without the word on channels."""
    return None if entry.metric is None else entry.metric.removesuffix(PER_CHANNEL)


@dataclass(frozen=True, kw_only=True, repr=False)
class QuantPlan:
    """Every decision about one graph, for one target.

    Args:
        target: the target's name, or the path of a user's target file.
        graph: fingerprint of the graph the plan belongs to.
        activations: value name to its entry, in execution order.
        weights: layer name to its entry, in execution order.
        config: the options the plan was made with.
        samples: calibration samples behind the statistics.
        notes: non-fatal facts a user should know.
        bias_corrections: what is added to the bias of a layer, by name of the operation that uses the bias.
        preprocessing: what the network does to raw input, by input name.
        rules: what was asked for single tensors when the plan was made, in order.
        widths: how mixed precision distributed code widths, where no rule decides.
    """

    target: str
    graph: str
    activations: Mapping[str, TensorPlan]
    weights: Mapping[str, TensorPlan]
    config: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 0
    notes: tuple[str, ...] = ()
    bias_corrections: Mapping[str, BiasCorrection] = field(default_factory=dict)
    preprocessing: Mapping[str, Preprocessing] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    widths: Widths = field(default_factory=Widths)

    def __post_init__(self) -> None:
        for name, entry in self.activations.items():
            if entry.same_as is not None:
                root = self.activations.get(entry.same_as)
                if root is None:
                    raise unknown_name("tensor in `same_as`", entry.same_as, self.activations).at(name)
                if root.same_as is not None:
                    raise ConfigError(
                        f"`same_as` must name a tensor with its own grid, but {entry.same_as!r} refers on to "
                        f"{root.same_as!r}",
                        where=name,
                    )
        for name, entry in self.weights.items():
            if entry.same_as is not None:
                raise ConfigError("`same_as` is for activations", where=name)

    def __repr__(self) -> str:
        counts = f"{len(self.weights)} kernels, {len(self.activations)} activations"
        return f"QuantPlan(target {self.target!r}, {counts}, {self.samples} samples)"

    def activation_grid(self, name: str) -> Grid | None:
        """The grid of an activation, following `same_as`; None if it stays in float."""
        return grid_of(self.activations, name)

    def with_activation(self, name: str, grid: Grid | None) -> QuantPlan:
        """A plan with another grid for one activation."""
        if name not in self.activations:
            raise unknown_name("activation", name, self.activations)
        return replace(self, activations={**self.activations, name: TensorPlan(grid=grid)})

    def with_weight(self, layer: str, grid: Grid | None) -> QuantPlan:
        """A plan with another grid for one layer's weights, without the corrections made for the old one."""
        if layer not in self.weights:
            raise unknown_name("layer", layer, self.weights)
        codes = grid is None or grid.has_bias_step
        entry = TensorPlan(grid=grid, bias_bits=self.weights[layer].bias_bits if codes else None)
        corrections = {name: found for name, found in self.bias_corrections.items() if name != layer}
        return replace(self, weights={**self.weights, layer: entry}, bias_corrections=corrections)

    def to_json(self) -> str:
        """The plan as JSON, one tensor a line; the same plan gives the same bytes."""
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            "target": self.target,
            "graph": self.graph,
            "samples": self.samples,
            "config": dict(self.config),
            "rules": [rule.to_dict() for rule in self.rules],
            "notes": list(self.notes),
        }
        if self.preprocessing:
            head["preprocessing"] = {name: record.to_dict() for name, record in self.preprocessing.items()}
        if self.widths:
            head["widths"] = self.widths.to_dict()
        lines = [f"  {json.dumps(key)}: {_dumps(value)}," for key, value in head.items()]
        for name in _TABLES:
            entries: Mapping[str, TensorPlan | BiasCorrection] = getattr(self, name)
            rows = [f"    {json.dumps(key)}: {_dumps(entry.to_dict())}" for key, entry in entries.items()]
            body = "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"
            lines.append(f"  {json.dumps(name)}: {body},")
        return "{\n" + "\n".join(lines).removesuffix(",") + "\n}\n"

    @classmethod
    def from_json(cls, text: str, where: str = "plan") -> QuantPlan:
        """Parse a plan, edited or not.

        Raises:
            FormatError: not JSON, not a plan, or of another version.
            ConfigError: an entry that makes no sense; the error names it.
        """
        data = parse_json(text, where, remedy="restore the file, or plan again")
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise FormatError("this is not a detent plan", where=where)
        if data.get("version") != _VERSION:
            raise FormatError(
                f"plan version {data.get('version')!r} is not supported, this library reads version {_VERSION}",
                where=where,
                remedy="make the plan again with this version of detent",
            )
        for key in data:
            if key not in _KEYS:
                raise unknown_name("plan key", key, _KEYS).at(where)
        missing = sorted(set(_KEYS) - set(data) - _OPTIONAL)
        if missing:
            raise FormatError(f"the plan lacks {', '.join(missing)}", where=where, remedy="restore the file")
        corrections = data.setdefault("bias_corrections", {})
        for table in _TABLES:
            if not isinstance(data[table], dict):
                raise FormatError(f"`{table}` must be an object", where=where)
        preprocessing = data.get("preprocessing", {})
        if not isinstance(preprocessing, dict):
            raise FormatError("`preprocessing` must be an object", where=where)
        config, samples, notes = data["config"], data["samples"], data["notes"]
        if not isinstance(config, dict) or not isinstance(samples, int) or not isinstance(notes, list):
            raise FormatError("`config`, `samples` or `notes` has the wrong type", where=where)
        return cls(
            target=str(data["target"]),
            graph=str(data["graph"]),
            samples=samples,
            config=config,
            rules=rules_from_data(data.get("rules", []), f"{where}: rules"),
            widths=Widths.from_dict(data.get("widths", {}), f"{where}: widths"),
            notes=tuple(str(note) for note in notes),
            activations={name: TensorPlan.from_dict(entry, name) for name, entry in data["activations"].items()},
            weights={name: TensorPlan.from_dict(entry, name) for name, entry in data["weights"].items()},
            bias_corrections={name: BiasCorrection.from_dict(entry, name) for name, entry in corrections.items()},
            preprocessing={
                name: Preprocessing.from_dict(entry, f"{where}: preprocessing: {name}")
                for name, entry in preprocessing.items()
            },
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; the file is complete or not there.

        Raises:
            FormatError: the file cannot be written.
        """
        write_atomically(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> QuantPlan:
        """Read a plan; raises as `from_json`."""
        return cls.from_json(read_text(Path(path)), str(path))


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
