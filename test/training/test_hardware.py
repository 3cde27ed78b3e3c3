"""What makes a CPU quicker, by what it spares."""

import subprocess
import sys

import pytest

# Six tensors as large as a step's, freed each time; how many pages the kernel had to clear.
SCRIPT = """
import resource, sys, torch
from ehrnet_model.training.hardware import keep_memory
if sys.argv[1] == "keep" and not keep_memory():
    print("not here"); sys.exit()
def step():
    return [torch.ones(4 << 20) for _ in range(6)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    )
    if done.stdout.strip() == "not here":
        pytest.skip("this C library cannot be told to keep memory (no mallopt)")
    return int(done.stdout)


def test_a_step_takes_the_memory_that_the_last_one_freed():
    kept, given_back = faults("keep"), faults("as always")
    # 96 MiB a step are 24,576 pages of 4 KiB, or 48 of 2 MiB.
    assert given_back > 400 and kept < given_back / 20
