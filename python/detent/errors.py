"""Every exception detent raises. Messages say what happened, where, and what to do; attributes carry the data."""

from __future__ import annotations

__all__ = [
    "CalibrationError",
    "CaptureError",
    "ConfigError",
    "DetentError",
    "ExportError",
    "FormatError",
    "InfeasibleBudgetError",
    "UnsupportedOpError",
]


class DetentError(Exception):
    """Base of all errors detent raises on purpose.

    Args:
        what: what happened, in one sentence.
        where: the layer, file or option concerned, and the user's source line where known.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  to do: {self.remedy}")
        return "\n".join(lines)


class ConfigError(DetentError, ValueError):
    """A wrong option, target, plan entry or argument."""

    def at(self, where: str) -> ConfigError:
        """The same error at a place."""
        return ConfigError(self.what, where=where, remedy=self.remedy)


class CaptureError(DetentError):
    """The model cannot be captured as a graph."""


class UnsupportedOpError(DetentError):
    """An operation that cannot be handled where it stands."""


class CalibrationError(DetentError):
    """The calibration data or the statistics are unusable."""


class InfeasibleBudgetError(DetentError):
    """No assignment of bit widths satisfies the budget.

    Args:
        needed: the least achievable amount of each resource.
        allowed: the amount the budget allows.
    """

    def __init__(
        self,
        what: str,
        *,
        needed: dict[str, float],
        allowed: dict[str, float],
        where: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.needed = needed
        self.allowed = allowed

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_infeasible, (self.what, self.needed, self.allowed, self.where, self.remedy)


def _rebuild_infeasible(
    what: str, needed: dict[str, float], allowed: dict[str, float], where: str | None, remedy: str | None
) -> InfeasibleBudgetError:
    return InfeasibleBudgetError(what, needed=needed, allowed=allowed, where=where, remedy=remedy)


class ExportError(DetentError):
    """The quantized model cannot be written in the wanted format."""


class FormatError(DetentError):
    """A file is not what it should be: truncated, edited into nonsense, or of another version."""
