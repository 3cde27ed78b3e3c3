"""Real processes: torchrun, and a run that is killed."""

import csv
import dataclasses
import os
import shutil
import subprocess
import sys

import pytest
import torch

from ehrnet_model.network.checkpoint import load_checkpoint
from ehrnet_model.training.presets import preset
from ehrnet_model.training.states import load_state
from ehrnet_model.training.trainer import Trainer

TRAIN = ["-m", "ehrnet_ros.cli", "train", "--device", "cpu", "--holdout", "0", "--fp32"]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def train(folder, pack, *arguments, processes=1):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), *TRAIN]
    command += ["--pack", str(pack), "--out", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader((folder / "log.csv").open()))


def with_shared_memory(size, code, *arguments):
    """What a script prints where /dev/shm is of this size, as in a container."""
    room = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    room += [f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        subprocess.run([*room, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no /dev/shm of its own may be given to a process here")
    command = [*room, sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


RUN = """
import sys
from pathlib import Path

from ehrnet_model.errors import EhrnetError
from ehrnet_model.training.hardware import Hardware
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.trainer import Trainer

def trainer(count, hardware):
    packs, windows = ((sys.argv[1], 1.0),), ((64, count, 1.0),)
    options = TrainOptions(packs=packs, windows=windows, holdout=0.0)
    return Trainer(options, folder, hardware=hardware)

def refused(work):
    try:
        work()
    except EhrnetError as error:
        print(error)

folder = Path(sys.argv[2])
"""


def test_plans_need_no_shared_memory(pack_file, tmp_path):
    """Of which those made ahead would fill more than there is."""
    code = RUN + (
        "batches = trainer(128, Hardware(windows_on='device', workers=2)).batches()\n"
        "for _ in range(6):\n"
        "    print(len(next(batches).images))\n"
        "batches.close()\n"
    )
    assert with_shared_memory("1m", code, pack_file, tmp_path) == ["128"] * 6


def test_windows_that_shared_memory_does_not_hold_are_refused(pack_file, tmp_path):
    """Before a run, and in it where the memory has gone to something else."""
    code = RUN + (
        "refused(lambda: trainer(8, Hardware(windows_on='host', workers=2)))\n"
        "run = trainer(8, Hardware(windows_on='host', workers=1))\n"
        "with open('/dev/shm/other', 'wb', 0) as file:\n"
        "    try:\n"
        "        while file.write(bytes(2**16)):\n"
        "            pass\n"
        "    except OSError:\n"
        "        file.truncate(file.tell() - 2**19)  # for the queues' semaphores\n"
        "refused(lambda: next(run.batches()))\n"
    )
    before, within = with_shared_memory("8m", code, pack_file, tmp_path)
    assert before == (
        "shared memory (/dev/shm) has no room for batches of 2 MiB from 2 processes: give it more "
        "(docker run --shm-size 8g), or say --workers 1."
    )
    assert before.count("\n") == 0 and within.startswith("no shared memory is left for windows (")
    assert within.endswith("or take fewer --workers (0: none is needed).")


def test_two_processes_learn_what_one_learns_from_the_same_batches(rich_pack, tmp_path):
    """Normalised over both batches, so that nothing but the order of sums is different."""
    arguments = ["--steps", "4", "--lr", "1e-3", "--log-steps", "1"]
    one = train(tmp_path / "one", rich_pack, *arguments, "--window", "64:4")
    two = train(
        tmp_path / "two", rich_pack, *arguments, "--window", "64:2", "--shared-norm", processes=2
    )
    assert [row["images"] for row in one] == [row["images"] for row in two] != []
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "low", "high", "pull", "push"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=2e-3), (a["step"], name)
    assert abs(float(one[0]["loss"]) / float(one[-1]["loss"]) - 1) > 0.02  # the curve moves


def test_one_of_two_processes_measures_what_is_held_back(rich_pack, tmp_path):
    """After each step and at the end, while the other has nothing to share with it."""
    often = tmp_path / "often.py"
    often.write_text(
        "import sys\n"
        "from ehrnet_model.training import holdout, trainer\n"
        "from ehrnet_ros.cli import main\n"
        "trainer._HOLDOUT_S, holdout._BATCHES = 0.0, 2\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    folder = tmp_path / "two"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["train", "--device", "cpu", "--fp32", "--holdout", "0.5", "--pack", str(rich_pack)]
    words += ["--steps", "2", "--window", "64:2", "--out", str(folder)]
    command = [sys.executable, *torchrun, str(often), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((folder / "holdout.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(float(row["loss"]) > 0 for row in rows)
    assert load_checkpoint(folder / "H-4.safetensors")[1].metrics["held_back"]["loss"] > 0


def test_a_compact_state_is_unpacked_by_one_of_two_processes(pack_file, tmp_path):
    """Although the other comes when it has been done."""
    late = tmp_path / "late.py"
    late.write_text(
        "import os, sys, time\n"
        "from torch import distributed\n"
        "from ehrnet_ros.cli import main\n"
        "state = sys.argv[-1] + '/state.pt'\n"
        "join = distributed.init_process_group\n"
        "def join_and_wait(*arguments):\n"
        "    join(*arguments)\n"
        "    while os.environ['RANK'] == '1' and not os.path.exists(state):\n"
        "        time.sleep(0.05)\n"
        "distributed.init_process_group = join_and_wait\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    options = dataclasses.replace(
        preset("ours", -4),
        packs=((str(pack_file), 1.0),),
        steps=1,
        windows=((64, 2, 1.0),),
        holdout=0.0,
        bf16=False,
    )
    Trainer(options, tmp_path / "one").save_compact(tmp_path / "a.resume.safetensors")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(late)]
    words = [*TRAIN[2:], "--steps", "1", "--log-steps", "1", "--window", "64:2", "--pack"]
    words += [str(pack_file), "--unpack", str(tmp_path / "a.resume.safetensors"), "--out"]
    command = [sys.executable, *torchrun, *words, str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "two" / "log.csv").open()))
    assert [(row["step"], row["images"]) for row in rows] == [("1", "4")]


def test_machines_without_a_common_run_folder_do_not_go_on(pack_file, tmp_path):
    """Each process with a folder of its own, of which the first alone has a state."""
    apart = tmp_path / "apart.py"
    apart.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from ehrnet_model.errors import EhrnetError\n"
        "from ehrnet_model.training.options import TrainOptions\n"
        "from ehrnet_model.training.trainer import Trainer\n"
        "packs, windows = ((sys.argv[1], 1.0),), ((64, 2, 1.0),)\n"
        "options = TrainOptions(packs=packs, windows=windows, holdout=0.0)\n"
        "folder = Path(sys.argv[2] + os.environ.get('RANK', '0'))\n"
        "said = 'begins'\n"
        "try:\n"
        "    trainer = Trainer(options, folder)\n"
        "    if trainer.world == 1:\n"
        "        trainer.run(steps=2)\n"
        "except EhrnetError as error:\n"
        "    said = str(error)\n"
        "(folder / 'said').write_text(said)\n"
    )
    script = [str(apart), str(pack_file), str(tmp_path / "machine")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def said(*launcher):
        command = [sys.executable, *launcher, *script]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), timeout=300
        )
        assert done.returncode == 0, done.stderr
        return [(tmp_path / f"machine{rank}/said").read_text() for rank in (0, 1) if launcher]

    assert said(*torchrun) == ["begins"] * 2
    said()
    for rank, text in enumerate(said(*torchrun)):
        assert f"(this one at step {2 - 2 * rank}, others at 0 to 2)" in text
        assert "all machines need the same run folder" in text and f"machine{rank} to each" in text
    shutil.copy(tmp_path / "machine0/state.pt", tmp_path / "machine1")
    assert said(*torchrun) == ["begins"] * 2


def test_a_killed_run_goes_on_as_if_nothing_had_happened(pack_file, tmp_path):
    """SIGKILL between two saves: what came after the last one is done again, bit for bit."""
    arguments = ["--steps", "9", "--log-steps", "1", "--window", "64:2", "96:1"]
    whole = train(tmp_path / "whole", pack_file, *arguments)
    folder = tmp_path / "killed"
    command = [sys.executable, *TRAIN, "--pack", str(pack_file), "--out", str(folder), *arguments]
    with subprocess.Popen(
        [*command, "--save-seconds", "0.7"], env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if line.startswith("step 5 ") or (folder / "state.pt").exists():
                break
        for line in process.stderr:  # one step more, so that there is something to lose
            if line.startswith("step "):
                break
        process.kill()
    saved = load_state(folder / "state.pt")["step"] if (folder / "state.pt").exists() else 0
    assert process.returncode == -9 and saved < 9
    (folder / ".state.pt.1.tmp").write_bytes(b"half a state, of a process killed while writing")
    again = train(folder, pack_file, *arguments)[-(9 - saved) :]
    assert [row["step"] for row in again] == [row["step"] for row in whole[saved:]]
    for a, b in zip(again, whole[saved:], strict=True):
        assert {k: a[k] for k in ("images", "lr", "loss", "pull")} == {
            k: b[k] for k in ("images", "lr", "loss", "pull")
        }
    first, second = (load_state(tmp_path / name / "state.pt") for name in ("whole", "killed"))
    for key, value in first["average"].items():
        torch.testing.assert_close(second["average"][key], value, rtol=0, atol=0)
    assert not list(folder.glob(".*.tmp"))


def test_a_full_disk_keeps_the_previous_state(tmp_path):
    """In a process whose files may not grow beyond a megabyte, as on a full disk."""
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from ehrnet_model.training.states import save_state\n"
        "path = Path(sys.argv[1])\n"
        "save_state({'step': 1, 'weights': torch.zeros(1000)}, path)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "save_state({'step': 2, 'weights': torch.zeros(10**6)}, path)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "state.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert "EhrnetError" in done.stderr and "previous state is untouched" in done.stderr
    assert load_state(tmp_path / "state.pt")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
