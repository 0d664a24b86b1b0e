"""The cost of a kernel, against the layer itself."""

from __future__ import annotations

import numpy as np
import pytest

from detent.rounding.objective import PatchMoments


def samples(groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(groups)
    patches = random.normal(0.3, 1, (groups, 700, 6)).astype(np.float32)
    outputs = random.normal(-0.2, 1, (groups, 700, 4)).astype(np.float32) + patches[:, :, :4]
    return patches, outputs, random.normal(size=(groups, 4, 6)).astype(np.float32)


def errors(patches: np.ndarray, outputs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return outputs.astype(np.float64) - patches.astype(np.float64) @ rows.astype(np.float64).transpose(0, 2, 1)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("central", [False, True])
def test_the_cost_is_the_mean_squared_error_of_an_output(groups: int, central: bool) -> None:
    patches, outputs, rows = samples(groups)
    sums = PatchMoments(groups, 6, 4)
    sums.add(patches[:, :300], outputs[:, :300])
    sums.add(patches[:, 300:], outputs[:, 300:])
    found = sums.objective(central=central)
    error = errors(patches, outputs, rows)
    wanted = error.var(axis=1).mean() if central else np.square(error).mean()
    assert found.cost(rows) == pytest.approx(wanted, rel=1e-5)
    assert found.count == 700


def test_the_bias_gives_the_mean_back() -> None:
    patches, outputs, rows = samples(2)
    sums = PatchMoments(2, 6, 4)
    sums.add(patches, outputs)
    bias = sums.objective(central=True).bias(rows)
    assert np.allclose(bias, errors(patches, outputs, rows).mean(axis=1).reshape(-1), atol=1e-5)


def test_what_is_not_finite_is_seen() -> None:
    patches, outputs, _ = samples(1)
    sums = PatchMoments(1, 6, 4)
    sums.add(patches, outputs)
    assert sums.finite
    outputs[0, 3, 1] = np.nan
    sums.add(patches, outputs)
    assert not sums.finite
