"""Items made ahead of their use: in a thread, or in several processes, always in order."""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ehrnet_model.errors import EhrnetError

_SHARED = "/dev/shm"
# Batches that each process makes ahead.
_AHEAD = 2


@dataclass(frozen=True)
class Job:
    """One batch of one process: windows ``first`` to ``first + count - 1``, ``side`` pixels."""

    side: int
    count: int
    first: int


class Made(NamedTuple):
    """What was made of one job, and the seconds it took: by the clock, and of a processor."""

    item: Any
    seconds: float
    cpu_seconds: float


def workers_that_fit(size: int) -> int:
    """How many processes can send items of ``size`` bytes through shared memory.

    Beside what they make ahead there are the item in use and the next one.
    """
    try:
        free = shutil.disk_usage(_SHARED).free
    except OSError:  # not Linux: nothing is known against it
        return sys.maxsize
    free //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, (free // size - 2) // _AHEAD)


def feed(
    make: Callable[[Job], Any], jobs: Iterator[Job], workers: int, pin: bool
) -> Generator[Made, None, None]:
    """What ``make`` makes of each job, in the order of the jobs.

    Args:
        make: called in a thread or in forked processes: it must not touch a GPU.
        jobs: without end.
        workers: how many processes, which send what the items' ``to_send`` gives; 0: one thread of
            this process.
        pin: put the items, which have ``pin_memory``, into memory a GPU can copy from.
    """
    return _processes(make, jobs, workers, pin) if workers else _thread(make, jobs, pin)


def _timed(make: Callable[[Job], Any], job: Job) -> Made:
    clock, processor = time.perf_counter(), time.thread_time()
    item = make(job)
    return Made(item, time.perf_counter() - clock, time.thread_time() - processor)


def _thread(
    make: Callable[[Job], Any], jobs: Iterator[Job], pin: bool
) -> Generator[Made, None, None]:
    ready: queue.Queue[Any] = queue.Queue(maxsize=2)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            item: Made | BaseException
            try:
                item = _timed(make, next(jobs))
                item = item._replace(item=item.item.pin_memory()) if pin else item
            except BaseException as error:  # handed to the thread that takes, which raises it
                item = error
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.5)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    thread = threading.Thread(target=work, daemon=True, name="windows")
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


class _Made(torch.utils.data.Dataset):
    """A data set whose indices are jobs."""

    def __init__(self, make: Callable[[Job], Any]) -> None:
        self.make = make

    def __getitem__(self, job: Job) -> Any:
        try:
            made = _timed(self.make, job)
            return made._replace(item=made.item.to_send())
        except EhrnetError as error:  # raised by who takes it; torch would add to its sentence
            return error


def _same(item: Any) -> Any:
    return item


def _processes(
    make: Callable[[Job], Any], jobs: Iterator[Job], workers: int, pin: bool
) -> Generator[Made, None, None]:
    import cv2

    # A forked process inherits OpenCV's pool without its threads and would wait for them for ever.
    cv2.setNumThreads(1)
    loader = torch.utils.data.DataLoader(
        _Made(make),
        batch_size=None,
        sampler=jobs,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        collate_fn=_same,
        pin_memory=pin,
        # Forked, so that all share the packs in memory.
        multiprocessing_context="fork",
    )
    for item in loader:
        if isinstance(item, EhrnetError):
            raise item
        yield item
