"""Twin of `detent.kernels.rounding.search_codes`: the same values tried in the same order, row by row."""

from __future__ import annotations

import bisect

import numpy as np
import numpy.typing as npt

from detent.kernels.reference.rounding import column_grid
from detent.kernels.rounding import Codes, ColumnGrids, Flags

__all__ = ["search_codes"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def search_codes(
    weights: Floats,
    hessian: Doubles,
    codes: Codes,
    grids: ColumnGrids,
    *,
    linear: Doubles | None = None,
    most_values: int = 1_000_000,
) -> tuple[Codes, Flags]:
    """Twin of `kernels.rounding.search_codes`, of a positive definite matrix."""
    rows, columns = weights.shape
    matrix, order = _decomposed(hessian)
    better, proved = codes.copy(), np.ones(rows, np.bool_)
    if columns == 0:
        return better, proved
    kinds = [column_grid(grids, rows, c) for c in order]
    for r in range(rows):
        levels = []
        for kind in kinds:
            every = np.arange(kind.qmin, kind.qmax + 1)
            one = type(kind)(
                kind.scale[r], kind.zero_point[r], kind.qmin, kind.qmax, None if kind.table is None else kind.table[r]
            )
            table = None if one.table is None else np.broadcast_to(one.table, (len(every), len(every)))
            levels.append(type(kind)(one.scale, one.zero_point, one.qmin, one.qmax, table).values(every).tolist())
        shift = np.zeros(columns) if linear is None else _solved(matrix, linear[r, order])
        target = weights[r, order].astype(np.float64) - shift
        search = _Search(matrix, target, levels)
        found, proved[r] = search.run([int(codes[r, c]) - kinds[0].qmin for c in order], most_values)
        better[r, order] = [k + kinds[0].qmin for k in found]
    return better, proved


def _decomposed(hessian: Doubles) -> tuple[Doubles, list[int]]:
    """M above the diagonal, D on it, and the column in each place: the least pivot first."""
    columns = len(hessian)
    matrix, order = hessian.copy(), list(range(columns))
    for k in range(columns):
        least = k + int(np.argmin(np.diag(matrix)[k:]))
        order[k], order[least] = order[least], order[k]
        matrix[[k, least], k:] = matrix[[least, k], k:]
        matrix[:, [k, least]] = matrix[:, [least, k]]
        shares = matrix[k, k + 1 :] / matrix[k, k]
        matrix[k + 1 :, k + 1 :] -= shares[:, None] * matrix[k, k + 1 :]
        matrix[k, k + 1 :] = shares
    return matrix, order


def _solved(matrix: Doubles, x: Doubles) -> Doubles:
    x = x.copy()
    for k in range(len(x)):
        x[k + 1 :] -= matrix[k, k + 1 :] * x[k]
    for k in reversed(range(len(x))):
        x[k] /= matrix[k, k]
        for j in range(k + 1, len(x)):
            x[k] -= matrix[k, j] * x[j]
    return x


class _Search:
    """Branch and bound over one row; codes count from 0."""

    def __init__(self, matrix: Doubles, target: Doubles, levels: list[list[float]]) -> None:
        self.matrix, self.target, self.levels = matrix.tolist(), target.tolist(), levels
        self.errors = [0.0] * len(levels)

    def center(self, k: int) -> float:
        total: float = self.target[k]
        for j in range(k + 1, len(self.levels)):
            total += self.matrix[k][j] * self.errors[j]
        return total

    def term(self, k: int, center: float, value: float) -> float:
        distance = center - value
        return float(self.matrix[k][k] * (distance * distance))

    def loss(self, codes: list[int]) -> float:
        loss = 0.0
        for k in reversed(range(len(codes))):
            value = self.levels[k][codes[k]]
            loss += self.term(k, self.center(k), value)
            self.errors[k] = self.target[k] - value
        return loss

    def nearest_first(self, k: int, center: float) -> list[int]:
        """All codes, each nearer to the centre than those that follow it."""
        values = self.levels[k]
        above = bisect.bisect_right(values, center)
        below, found = above - 1, []
        while below >= 0 or above < len(values):
            down = below >= 0 and (above == len(values) or center - values[below] <= values[above] - center)
            found.append(below if down else above)
            below, above = (below - 1, above) if down else (below, above + 1)
        return found

    def run(self, start: list[int], most_values: int) -> tuple[list[int], bool]:
        last = len(start) - 1
        best, found = self.loss(start), start
        path: list[tuple[float, float, list[int]]] = [(0.0, self.center(last), [])]
        path[0][2].extend(self.nearest_first(last, path[0][1]))
        codes, tried = [0] * len(start), 0
        while path:
            if tried == most_values:
                return found, False
            tried += 1
            k = last - len(path) + 1
            passed, center, left = path[-1]
            codes[k] = left.pop(0) if left else -1
            loss = passed + self.term(k, center, self.levels[k][codes[k]]) if codes[k] >= 0 else best
            if not loss < best:
                path.pop()
            elif k == 0:
                best, found = loss, codes.copy()
                path.pop()
            else:
                self.errors[k] = self.target[k] - self.levels[k][codes[k]]
                middle = self.center(k - 1)
                path.append((loss, middle, self.nearest_first(k - 1, middle)))
        return found, True
