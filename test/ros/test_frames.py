"""The mailbox between cameras and engine: newest first, fair turns, nothing lost uncounted."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrnet_ros.frames import LatestFrames


def test_it_keeps_the_newest_and_counts_the_rest():
    box = LatestFrames()
    for i in range(5):
        box.put("front", i)
    assert box.take() == [("front", 4)] and box.dropped("front") == 4
    assert box.take(timeout=0.01) == []
    box.put("front", 5)
    box.clear("front")
    box.clear("rear")
    assert box.dropped("front") == 5 and box.dropped("rear") == 0 and box.take(timeout=0) == []


@pytest.mark.parametrize("limit", [1, 2, 4])
@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.one_of(st.integers(0, 3), st.just("take"), st.just("clear")), max_size=60))
def test_turns_are_fair_and_every_item_is_its_senders(limit, steps):
    """Against an obvious model: a list of waiting senders, a dictionary of their items."""
    box, waiting, items, dropped = LatestFrames(), [], {}, dict.fromkeys(range(4), 0)
    for number, step in enumerate(steps):
        if step == "take":
            turn, waiting = waiting[:limit], waiting[limit:]
            assert box.take(limit, timeout=0) == [(sender, items.pop(sender)) for sender in turn]
        elif step == "clear":
            sender = number % 4
            dropped[sender] += sender in items
            items.pop(sender, None)
            waiting = [w for w in waiting if w != sender]
            box.clear(sender)
        else:
            dropped[step] += step in items
            if step not in items:
                waiting.append(step)
            items[step] = (step, number)
            box.put(step, items[step])
    assert [box.dropped(sender) for sender in range(4)] == list(dropped.values())


def test_a_flood_keeps_nobody_from_their_turn():
    box = LatestFrames()
    box.put("slow", 0)
    for i in range(1000):
        box.put("fast", i)
    assert box.take() == [("slow", 0)]
    box.put("slow", 1)
    assert box.take() == [("fast", 999)]
    box.put("fast", 1000)
    assert box.take() == [("slow", 1)]


def test_between_threads_it_loses_only_what_it_counts():
    box, taken = LatestFrames(), {0: [], 1: []}

    def take():
        while True:
            items = box.take(2)
            if not items:
                return
            for sender, item in items:
                taken[sender].append(item)

    def put(sender):
        for i in range(1, 2001):
            box.put(sender, i)
            if i % 100 == 0:
                time.sleep(0.001)

    threads = [threading.Thread(target=put, args=(sender,)) for sender in (0, 1)]
    taker = threading.Thread(target=take)
    for thread in [taker, *threads]:
        thread.start()
    for thread in threads:
        thread.join(30)
    end = time.monotonic() + 10
    while not all(t and t[-1] == 2000 for t in taken.values()) and time.monotonic() < end:
        time.sleep(0.001)
    box.close()
    taker.join(10)
    assert not taker.is_alive()
    for sender, items in taken.items():
        assert items[-1] == 2000 and items == sorted(set(items))
        assert len(items) + box.dropped(sender) == 2000


def test_closed_it_wakes_who_waits_and_gives_nothing_more():
    box = LatestFrames()
    taken = []
    taker = threading.Thread(target=lambda: taken.append(box.take()), daemon=True)
    taker.start()
    while not box._changed._waiters:
        assert taker.is_alive()
        time.sleep(0.001)
    box.close()
    taker.join(10)
    assert taken == [[]]
    box.put("front", 1)
    assert box.closed and box.take() == [] and box.dropped("front") == 0
