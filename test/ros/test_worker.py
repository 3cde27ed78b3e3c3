"""The thread that owns an engine: opens, uses and releases it, and never two at once."""

import threading

import pytest

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.cuda import OutOfDeviceMemory
from ehrnet_ros.worker import CLOSED, FAILED, READY, EngineWorker


class Engines:
    """Opens engines slowly enough to look at, and notes who did what in which thread."""

    def __init__(self):
        self.events, self.go, self.changed = [], threading.Event(), threading.Event()
        self.handled = threading.Event()
        self.alive = self.most_alive = 0

    def open(self):
        assert self.go.wait(10)
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        self.events.append(("open", threading.current_thread()))
        return object()

    def handle(self, engine, items):
        self.events += [(item, threading.current_thread()) for _, item in items]
        self.handled.set()

    def release(self, engine):
        self.alive -= 1
        self.events.append(("release", threading.current_thread()))

    def worker(self, open_engine=None, after=None):
        return EngineWorker(
            open_engine or self.open, self.handle, self.release, self.changed.set, after
        )


def test_one_thread_opens_uses_and_releases():
    engines = Engines()
    worker = engines.worker()
    worker.frames.put("front", "early")  # before the engine is ready
    engines.go.set()
    assert engines.changed.wait(10) and worker.state == READY and worker.engine is not None
    assert engines.handled.wait(10)
    worker.close()
    assert worker.join(10) and worker.state == CLOSED and worker.engine is None
    names, threads = zip(*engines.events)
    assert names == ("open", "early", "release")
    assert len(set(threads)) == 1 and threads[0] is not threading.current_thread()


@pytest.mark.parametrize(
    "error, sentence, details",
    [
        (EhrnetError("build it first."), "build it first.", False),
        (RuntimeError("0xdead"), "RuntimeError: 0xdead", True),
    ],
)
def test_an_engine_that_does_not_open(error, sentence, details):
    def refuse():
        raise error

    engines = Engines()
    worker = engines.worker(refuse)
    assert engines.changed.wait(10) and worker.state == FAILED
    assert sentence in worker.error and bool(worker.details) == details
    assert worker.join(10) and engines.events == []


def test_closed_while_it_opens_releases_and_says_nothing():
    engines = Engines()
    worker = engines.worker()
    worker.close()
    assert not worker.join(0.05)
    engines.go.set()
    assert worker.join(10) and worker.state == CLOSED
    assert not engines.changed.is_set() and engines.alive == 0


def test_the_next_engine_waits_for_the_release_of_the_last():
    engines = Engines()
    engines.go.set()
    first = engines.worker()
    assert engines.changed.wait(10)
    first.close()
    second = engines.worker(after=first)
    second.frames.put("front", "x")
    assert engines.handled.wait(10)
    second.close()
    assert second.join(10)
    assert engines.most_alive == 1
    assert [name for name, _ in engines.events] == ["open", "release", "open", "x", "release"]


def test_waiting_for_another_engine_is_not_called_loading_one():
    engines = Engines()
    first = engines.worker()
    assert not first.waits
    first.close()
    second = engines.worker(after=first)
    begun = second.since
    assert second.waits and not engines.events
    engines.go.set()
    assert engines.changed.wait(10) and second.state == READY and not second.waits
    assert second.since > begun
    second.close()
    assert second.join(10)


@pytest.mark.parametrize("error, short", [(OutOfDeviceMemory, True), (EhrnetError, False)])
def test_what_may_pass_is_told_apart(error, short):
    engines = Engines()

    def refuse():
        raise error("it does not suffice.")

    worker = engines.worker(refuse)
    assert engines.changed.wait(10) and worker.state == FAILED
    assert worker.short_of_memory == short
    assert worker.join(10)


def test_what_comes_after_the_engine_does_not_hold_it_up():
    """Two are on their way at once, never three; all are finished, in order, before the release."""
    log, lock, entered, go = [], threading.Lock(), threading.Semaphore(0), threading.Semaphore(0)
    ready = threading.Event()

    def note(*words):
        with lock:
            log.append(words)

    def rest(item):
        note("rest begins", item)
        entered.release()
        assert go.acquire(timeout=10)
        note("rest ends", item)

    def handle(engine, items):
        (item,) = [item for _, item in items]
        note("engine", item)
        entered.release()
        return lambda: rest(item)

    worker = EngineWorker(object, handle, lambda engine: note("release"), ready.set)
    assert ready.wait(10)
    worker.frames.put("front", 1)
    for _ in range(2):  # the engine had it; what is left of it has begun, and waits
        assert entered.acquire(timeout=10)
    worker.frames.put("front", 2)
    assert entered.acquire(timeout=10)
    assert log == [("engine", 1), ("rest begins", 1), ("engine", 2)]
    worker.frames.put("front", 3)
    assert not entered.acquire(timeout=0.2)  # the engine waits with its answer to 2
    go.release()
    for _ in range(2):
        assert entered.acquire(timeout=10)
    assert log[3] == ("rest ends", 1) and set(log[4:]) == {("rest begins", 2), ("engine", 3)}
    worker.close()
    assert not worker.join(0.1)
    go.release()
    go.release()
    assert worker.join(10)
    ends = [words for words in log if words[0] != "rest begins" and words[0] != "engine"]
    assert ends == [("rest ends", 1), ("rest ends", 2), ("rest ends", 3), ("release",)]
