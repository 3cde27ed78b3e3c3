"""Who belongs to whom, at the greatest total worth. Small enough not to need SciPy on a robot."""

from __future__ import annotations

from typing import Tuple

import numpy as np


def best_pairs(worth: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """``best_among`` all pairs of rows and columns.

    Args:
        worth: (R, C), not negative; pairs worth 0 are never made.
    """
    rows, columns = np.nonzero(worth)
    return best_among(rows, columns, worth[rows, columns])


def best_among(
    rows: np.ndarray, columns: np.ndarray, worth: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Of possible pairs those with the greatest total worth, each row and column in at most one.

    Exact: shortest augmenting paths (Jonker and Volgenant 1987) among those that compete with each
    other, where they do not all get what is best for them.

    Args:
        rows: (N,) int, of the possible pairs.
        columns: (N,) int, likewise; no pair comes twice.
        worth: (N,) of each, above 0.

    Returns:
        (M,) rows and (M,) columns.
    """
    if not len(rows):
        return rows, columns
    alone = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1)
    if alone.all():
        return rows, columns
    made = [np.flatnonzero(alone)]
    rest = np.flatnonzero(~alone)
    group = _competing(rows[rest], columns[rest])
    for one, two in ((rows, columns), (columns, rows)):
        # The best pair of each row, then of each column: the best of all, where none comes twice.
        key, other = one[rest], two[rest]
        order = np.lexsort((-worth[rest], key))
        first = np.ones(len(order), bool)
        first[1:] = np.diff(key[order]) > 0
        best = order[first]
        clash = np.bincount(other[best])[other[best]] > 1
        clashing = np.zeros(int(group.max()) + 1, bool)
        clashing[group[best[clash]]] = True
        made.append(rest[best[~clashing[group[best]]]])
        left = clashing[group]
        rest, group = rest[left], group[left]
        if not len(rest):
            break
    order = np.argsort(group, kind="stable")
    for mine in np.split(rest[order], np.flatnonzero(np.diff(group[order])) + 1):
        if len(mine):
            made.append(mine[_chosen(rows[mine], columns[mine], worth[mine])])
    chosen = np.concatenate(made)
    return rows[chosen], columns[chosen]


def _competing(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(N,) number of each pair's group: pairs of different groups share no row and no column."""
    group = np.arange(len(rows))
    while True:
        before = group
        for key in (rows, columns):
            least = np.full(int(key.max()) + 1, len(group))
            np.minimum.at(least, key, group)
            group = least[key]
        if (group == before).all():
            return group


def _chosen(rows: np.ndarray, columns: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Indices of the pairs of greatest total worth."""
    some, row = np.unique(rows, return_inverse=True)
    others, column = np.unique(columns, return_inverse=True)
    if len(some) > len(others):
        some, others, row, column = others, some, column, row
    table = np.zeros((len(some), len(others)))
    table[row, column] = worth
    partner = _cheapest(-table)
    return np.flatnonzero(partner[row] == column)


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
