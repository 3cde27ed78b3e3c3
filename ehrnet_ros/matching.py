"""Pairs of messages of two topics by the stamps of their images."""

from __future__ import annotations

import collections
from typing import Any, Deque, List, Tuple

_WAITING = 10  # at least; a first is small


class StampMatcher:
    """Finds to each of the firsts the second of the same stamp, or of the nearest.

    Firsts wait until their second is there, in order, at most ten of them or as many as seconds are
    kept: they may come before or after it. A second may serve several firsts. Stamps that go back,
    as when a bag begins anew, end what waits: where one of the two goes back, the other is about
    to.

    Attributes:
        slop_ns: how far the stamps of a pair may be apart, in nanoseconds.
        kept: how many seconds are kept.
        missed: how many firsts have had no second.
        late_ns: by how much the last of these was older than any second that was kept, where that
            many had to go; else 0.
        early_ns: by how much it was newer than all seconds, where it could wait no longer; else 0.

    """

    def __init__(self, slop_ns: int = 0, kept: int = 30) -> None:
        self.slop_ns, self.kept = slop_ns, kept
        self.missed = self.late_ns = self.early_ns = 0
        self._firsts: Deque[Tuple[int, Any]] = collections.deque()
        self._seconds: Deque[Tuple[int, Any]] = collections.deque()
        self._newest = [-1, -1]  # stamps of firsts and seconds, and how often they went back
        self._back = [0, 0]

    @property
    def has_seconds(self) -> bool:
        """Whether any second is kept."""
        return bool(self._seconds)

    def clear(self) -> None:
        """Forgets all messages."""
        self._firsts.clear()
        self._seconds.clear()
        self._newest, self._back = [-1, -1], [0, 0]

    def first(self, stamp_ns: int, item: Any) -> List[Tuple[Any, Any]]:
        """Adds a first; the pairs that are complete now."""
        self._see(0, stamp_ns)
        self._firsts.append((stamp_ns, item))
        while len(self._firsts) > max(_WAITING, self.kept):
            stamp, _ = self._firsts.popleft()
            self._miss(0, max(0, stamp - self._newest[1]) if self._seconds else 0)
        return self._pairs()

    def second(self, stamp_ns: int, item: Any) -> List[Tuple[Any, Any]]:
        """Adds a second; the pairs that are complete now."""
        self._see(1, stamp_ns)
        self._seconds.append((stamp_ns, item))
        while len(self._seconds) > self.kept:
            self._seconds.popleft()
        return self._pairs()

    def _miss(self, late_ns: int, early_ns: int = 0) -> None:
        self.missed += 1
        self.late_ns, self.early_ns = late_ns, early_ns

    def _see(self, which: int, stamp_ns: int) -> None:
        queues, other = (self._firsts, self._seconds), 1 - which
        if stamp_ns < self._newest[which]:
            self._back[which] += 1
            queues[which].clear()
            if self._back[other] < self._back[which]:
                queues[other].clear()
        self._newest[which] = stamp_ns

    def _pairs(self) -> List[Tuple[Any, Any]]:
        pairs: List[Tuple[Any, Any]] = []
        while self._firsts and self._seconds:
            stamp, item = self._firsts[0]
            newest = self._seconds[-1][0]
            # Of equally near ones the newest: it comes last.
            off, place = min((abs(other - stamp), -i) for i, (other, _) in enumerate(self._seconds))
            partner = self._seconds[-place][1]
            if off == 0 or (off <= self.slop_ns and newest >= stamp):
                pairs.append((item, partner))
            elif newest > stamp + self.slop_ns:  # what comes is newer still
                full = len(self._seconds) >= self.kept
                self._miss(max(0, self._seconds[0][0] - stamp) if full else 0)
            else:
                break
            self._firsts.popleft()
        return pairs
