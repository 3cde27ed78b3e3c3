"""A mailbox that holds the newest item of each sender. What an item replaces is counted."""

from __future__ import annotations

import collections
import threading
from typing import Deque, Dict, Generic, Hashable, List, Optional, Tuple, TypeVar

T = TypeVar("T")


class LatestFrames(Generic[T]):
    """From several threads to one without a queue that can grow.

    Senders are served in the order in which they began to wait: a fast one cannot keep a slow one
    from its turn, and a silent one delays nobody.
    """

    def __init__(self) -> None:
        self._items: Dict[Hashable, T] = {}
        self._turns: Deque[Hashable] = collections.deque()
        self._dropped: Dict[Hashable, int] = collections.defaultdict(int)
        self._closed = False
        self._changed = threading.Condition()

    def put(self, sender: Hashable, item: T) -> None:
        """Leaves an item; the sender's older one is dropped. After close() does nothing."""
        with self._changed:
            if self._closed:
                return
            if sender in self._items:
                self._dropped[sender] += 1
            else:
                self._turns.append(sender)
            self._items[sender] = item
            self._changed.notify()

    def take(self, limit: int = 1, timeout: Optional[float] = None) -> List[Tuple[Hashable, T]]:
        """Waits for an item, at most ``timeout`` seconds.

        Returns:
            What waits, with its senders, whose turn it is first; at most ``limit``, each sender
            once. Empty after the time is over, or once closed.

        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._turns) or self._closed, timeout)
            senders = [self._turns.popleft() for _ in range(min(limit, len(self._turns)))]
            return [(sender, self._items.pop(sender)) for sender in senders]

    def clear(self, sender: Hashable) -> None:
        """Forgets what waits from a sender, as when a source was given up."""
        with self._changed:
            if self._items.pop(sender, None) is not None:
                self._turns.remove(sender)
                self._dropped[sender] += 1

    def dropped(self, sender: Hashable) -> int:
        """How many items of a sender were replaced or forgotten before anybody took them."""
        with self._changed:
            return self._dropped[sender]

    def close(self) -> None:
        """Wakes whoever waits; from now on there is nothing to take."""
        with self._changed:
            self._items.clear()
            self._turns.clear()
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed
