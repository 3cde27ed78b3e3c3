"""A mailbox that holds one item: the newest. What it replaces is counted."""

from __future__ import annotations

import threading
from typing import Generic, Optional, TypeVar

T = TypeVar("T")


class LatestFrame(Generic[T]):
    """From one thread to another without a queue, so that delay cannot grow.

    Attributes:
        dropped: how many items were replaced or cleared before anybody took them.

    """

    def __init__(self) -> None:
        self._item: Optional[T] = None
        self._closed = False
        self._changed = threading.Condition()
        self.dropped = 0

    def put(self, item: T) -> None:
        """Leaves an item; an older one that nobody took is dropped. After close() does nothing."""
        with self._changed:
            if self._closed:
                return
            if self._item is not None:
                self.dropped += 1
            self._item = item
            self._changed.notify()

    def take(self, timeout: Optional[float] = None) -> Optional[T]:
        """Waits for an item, at most ``timeout`` seconds. None after that, or once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self._closed, timeout)
            item, self._item = self._item, None
            return item

    def clear(self) -> None:
        """Forgets a waiting item, as when the source was given up."""
        with self._changed:
            if self._item is not None:
                self.dropped += 1
            self._item = None

    def close(self) -> None:
        """Wakes whoever waits; from now on there is nothing to take."""
        with self._changed:
            self._item, self._closed = None, True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed
