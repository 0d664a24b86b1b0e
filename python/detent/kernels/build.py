"""How the kernels were built and what they run on."""

from __future__ import annotations

from typing import TypedDict

from detent import _core

__all__ = ["BuildInfo", "build_info"]


class BuildInfo(TypedDict):
    """Version, compiler, instruction sets compiled in, those this machine runs, the one in use, threads in use."""

    version: str
    compiler: str
    compiled_isas: list[str]
    available_isas: list[str]
    active_isa: str
    num_threads: int


def build_info() -> BuildInfo:
    """Facts about the compiled kernels; `DETENT_ISA` and `DETENT_NUM_THREADS` change the last two."""
    return BuildInfo(
        version=_core.version,
        compiler=_core.compiler,
        compiled_isas=_core.compiled_isas(),
        available_isas=_core.available_isas(),
        active_isa=_core.active_isa(),
        num_threads=_core.num_threads(),
    )
