"""Hardware as data: what a chip or runtime can compute, in JSON files checked by a schema."""

from __future__ import annotations

from detent.targets.load import load_target, target_names
from detent.targets.op_names import KINDS, OP_NAMES, kind_of
from detent.targets.schema import ActivationRule, FixedGrid, GridKindName, IoType, OpRule, Target, WeightRule

__all__ = [
    "KINDS",
    "OP_NAMES",
    "ActivationRule",
    "FixedGrid",
    "GridKindName",
    "IoType",
    "OpRule",
    "Target",
    "WeightRule",
    "kind_of",
    "load_target",
    "target_names",
]
