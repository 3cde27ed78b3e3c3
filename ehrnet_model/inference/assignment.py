"""Who belongs to whom, at the greatest total worth. Small enough not to need SciPy on a robot."""

from __future__ import annotations

from typing import Tuple

import numpy as np


def best_pairs(worth: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Pairs of rows and columns with the greatest total worth, each in at most one pair.

    Exact: shortest augmenting paths (Jonker and Volgenant 1987), after pairs that compete with
    nobody are set aside.

    Args:
        worth: (R, C), not negative; pairs worth 0 are never made.

    Returns:
        (M,) rows and (M,) columns.
    """
    possible = worth > 0
    alone = possible & (possible.sum(1, keepdims=True) == 1) & (possible.sum(0) == 1)
    lone_rows, lone_columns = np.nonzero(alone)
    rows = np.flatnonzero(possible.any(1) & ~alone.any(1))
    columns = np.flatnonzero(possible.any(0) & ~alone.any(0))
    rest = worth[np.ix_(rows, columns)]
    if rest.shape[0] <= rest.shape[1]:
        partner = _cheapest(-rest)
        first, second = np.arange(len(rows)), partner
    else:
        partner = _cheapest(-rest.T)
        first, second = partner, np.arange(len(columns))
    made = rest[first, second] > 0
    return (
        np.concatenate([lone_rows, rows[first[made]]]),
        np.concatenate([lone_columns, columns[second[made]]]),
    )


def _cheapest(cost: np.ndarray) -> np.ndarray:
    """(R,) the column of each row at the least total cost; R <= C, every row gets one."""
    count, width = cost.shape
    row_price, column_price = np.zeros(count), np.zeros(width)
    partner = np.full(count, -1, np.int64)
    owner = np.full(width, -1, np.int64)
    for start in range(count):
        distance = np.full(width, np.inf)
        came_from = np.full(width, -1, np.int64)
        done = np.zeros(width, bool)
        row, reached = start, 0.0
        while True:
            through = reached + cost[row] - row_price[row] - column_price
            nearer = ~done & (through < distance)
            distance[nearer], came_from[nearer] = through[nearer], row
            column = int(np.where(done, np.inf, distance).argmin())
            reached = distance[column]
            done[column] = True
            if owner[column] < 0:
                break
            row = owner[column]
        taken = np.flatnonzero(done & (owner >= 0))
        row_price[start] += reached
        row_price[owner[taken]] += reached - distance[taken]
        column_price[done] -= reached - distance[done]
        row = -1
        while row != start:
            row = came_from[column]
            owner[column] = row
            partner[row], column = column, partner[row]
    return partner
