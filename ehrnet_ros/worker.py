"""The thread that owns an engine from creation to release, so that nobody else waits for it.

A second thread does what comes after the engine. So two frames are on their way at once: while one
is decoded and published, the engine already has the next.
"""

from __future__ import annotations

import threading
import time
import traceback
from queue import SimpleQueue
from typing import Any, Callable, Hashable, List, Optional, Tuple

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.cuda import OutOfDeviceMemory
from ehrnet_ros.frames import LatestFrames

LOADING, READY, FAILED, CLOSED = "loading", "ready", "failed", "closed"


class EngineWorker:
    """Opens an engine in a thread of its own and hands it the newest items again and again.

    Args:
        open_engine: makes the engine, seconds of work; raises EhrnetError where it cannot.
        handle: called in the thread with the engine and the (sender, item) pairs taken. Returns
            what is left to do without the engine, or None; that is called in the second thread, in
            order, one at a time. Neither may raise.
        release: frees the engine, in the same thread.
        on_change: called in the thread after the state became ready or failed.
        after: a worker to wait for first, so that two engines are never in memory at once.
        batch: at most so many items, each of another sender, are handed over at once.

    Attributes:
        state: ``loading``, ``ready``, ``failed`` or ``closed``.
        error: why it failed, one sentence.
        details: traceback of a failure that nobody foresaw, else empty.
        short_of_memory: it failed because a GPU's memory did not suffice, which may pass.
        frames: the mailbox from which items are taken, fair to all senders.
        seconds: how long the engine took to open.
        engine: once ready; only to be looked at from other threads.
        since: time.monotonic() of the last change of state.
        given: time.monotonic() when the engine got what it is at now; None while it waits.

    """

    def __init__(
        self,
        open_engine: Callable[[], Any],
        handle: Callable[[Any, List[Tuple[Hashable, Any]]], Optional[Callable[[], None]]],
        release: Callable[[Any], None],
        on_change: Callable[[], None],
        after: Optional[EngineWorker] = None,
        batch: int = 1,
    ) -> None:
        self.state, self.error, self.details = LOADING, "", ""
        self.short_of_memory = False
        self.since = time.monotonic()
        self.given: Optional[float] = None
        self.seconds = 0.0
        self.engine: Any = None
        self.frames: LatestFrames[Any] = LatestFrames()
        self._batch = batch
        self._open, self._handle, self._release = open_engine, handle, release
        self._on_change, self._after = on_change, after
        # A daemon: an engine that hangs while loading must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def waits(self) -> bool:
        """Whether the engine is not even loading yet, since the one before has not ended."""
        return self.state == LOADING and self._after is not None

    def close(self) -> None:
        """Asks the thread to release the engine and end; does not wait."""
        self.frames.close()

    def join(self, timeout: Optional[float] = None) -> bool:
        """Waits for the thread. False when it has not ended within ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None
            self.since = time.monotonic()
        if self.frames.closed:
            self._change(CLOSED)
            return
        begun = time.monotonic()
        try:
            self.engine = engine = self._open()
        except EhrnetError as error:
            self.error = str(error)
            self.short_of_memory = isinstance(error, OutOfDeviceMemory)
        except Exception as error:  # vendor libraries raise what they like
            self.error = f"The engine could not be opened: {type(error).__name__}: {error}."
            self.details = traceback.format_exc()
        if self.error:
            self._change(FAILED)
            return
        self.seconds = time.monotonic() - begun
        second = _Second()
        try:
            self._change(READY)
            while True:
                items = self.frames.take(self._batch)
                if not items:
                    break
                self.given = time.monotonic()
                rest = self._handle(engine, items)
                if rest is not None:
                    second.give(rest)
                self.given = None
        finally:
            second.end()
            self._release(engine)
            self.engine = engine = None
            self._change(CLOSED)

    def _change(self, state: str) -> None:
        self.state, self.since = state, time.monotonic()
        if state in (READY, FAILED) and not self.frames.closed:
            self._on_change()


class _Second:
    """A thread that does one thing after the other; whoever gives it one waits for the last."""

    def __init__(self) -> None:
        self._free = threading.Semaphore()
        self._given: SimpleQueue[Optional[Callable[[], None]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="after engine", daemon=True)
        self._thread.start()

    def give(self, work: Callable[[], None]) -> None:
        """Waits until everything given before is done, not for this."""
        self._free.acquire()
        self._given.put(work)

    def end(self) -> None:
        """Waits for what was given, and ends the thread."""
        self._given.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            work = self._given.get()
            if work is None:
                return
            try:
                work()
            finally:
                self._free.release()
