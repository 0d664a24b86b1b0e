"""Every parity test may ask for `variant` to be run once per instruction set and thread count."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fanout import VARIANTS, Variant, current, running


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Iterator[Variant]:
    """Run the test under one instruction set and thread count; prefer `fanout.assert_parity` inside one test."""
    with running(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _settings_unchanged() -> Iterator[None]:
    before = current()
    yield
    assert current() == before, "a test left the process on another instruction set or thread count"
