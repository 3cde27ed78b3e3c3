"""What makes a CPU quicker, by what it spares."""

import statistics
import subprocess
import sys

import pytest

# Three tensors of 40 MiB, freed each time (glibc maps what is over 32 MiB by itself, always); how
# many pages the kernel cleared for each step. What is kept may move once or twice at first.
SCRIPT = """
import resource, sys, torch
from ehrnet_model.training.hardware import keep_memory
if sys.argv[1] == "keep" and not keep_memory():
    print("not here"); sys.exit()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    before = faults()
    tensors = [torch.ones(10 << 20) for _ in range(3)]
    del tensors
    return faults() - before
print(*[step() for _ in range(15)])
"""


def faults(how: str) -> float:
    """Page faults of the usual step."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    )
    if done.stdout.strip() == "not here":
        pytest.skip("this C library cannot be told to keep memory (no mallopt)")
    return statistics.median(int(n) for n in done.stdout.split())


def test_a_step_takes_the_memory_that_the_last_one_freed():
    kept, given_back = faults("keep"), faults("as always")
    # 120 MiB are 30,720 pages of 4 KiB, or 60 of 2 MiB.
    assert given_back >= 60 and kept < given_back / 20
