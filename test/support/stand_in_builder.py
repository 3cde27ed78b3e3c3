"""What builds engines in tests of the cache, where there is no GPU: a plan names its ONNX file.

Everything around it is real: files, locks, processes, the parity check on ONNX Runtime. As a
program it builds one engine and says what it does:

    python stand_in_builder.py MODEL FOLDER [--tensorrt VERSION] [--bytes N] [--hold FILE] ...
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.cuda import OutOfDeviceMemory
from ehrnet_model.inference.engine import Built, EngineInfo, Platform, ensure_engine
from ehrnet_model.inference.onnx_runtime import OnnxRuntime

MAGIC = b"stand-in\n"


class StandInBuilder:
    """Attributes are what tests vary; ``builds`` counts."""

    def __init__(
        self, tensorrt: str = "10.3.0", gpu: str = "Orin", capability: str = "8.7", **settings: Any
    ) -> None:
        self.here = Platform(tensorrt, gpu, capability)
        self.told = settings
        self.size = 1000
        self.builds = 0
        self.timing_caches: list[bytes] = []
        self.during: Callable[[Any], None] = lambda report: None
        self.answer: Callable[[np.ndarray], np.ndarray] = lambda peaks: peaks
        self.refuses = b"\xff refused"
        self.memory_is_short = False
        self.fault = ""

    def platform(self) -> Platform:
        return self.here

    def settings(self) -> dict[str, Any]:
        return self.told

    def build(self, onnx: Path, spec: Any, timing_cache: bytes, report: Any) -> Built:
        self.builds += 1
        self.timing_caches.append(timing_cache)
        report(0.5, "half of it")
        self.during(report)
        head = MAGIC + str(onnx.resolve()).encode() + b"\n" + self.here.tensorrt.encode() + b"\n"
        return Built(head + bytes(self.size), b"timed %d" % self.builds, {"fp32": 3}, self.fault)

    def open(self, plan: bytes, info: EngineInfo, where: str) -> Any:
        if self.memory_is_short:
            raise OutOfDeviceMemory(f"no memory for {where}.")
        lines = plan.split(b"\n")
        if not plan.startswith(MAGIC) or self.refuses in plan:
            raise EhrnetError(f"the stand-in does not accept {where}.")
        runtime = OnnxRuntime(Path(lines[1].decode()), info.spec.size_hw)
        return Answering(runtime, self.answer)


class Answering:
    """A runtime whose answers may be falsified."""

    def __init__(self, runtime: OnnxRuntime, answer: Callable[[np.ndarray], np.ndarray]) -> None:
        self.info, self.name, self.size_hw = runtime.info, "stand-in", runtime.size_hw
        self._runtime, self._answer = runtime, answer

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._answer(self._runtime(images))

    def close(self) -> None:
        self._runtime.close()


def main() -> None:
    """Prints ``building`` when it builds, ``writing`` when it writes, and the engine at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes", type=int, default=1000)
    parser.add_argument("--hold", type=Path, help="builds until this file exists")
    parser.add_argument("--hang", action="store_true", help="never finishes writing")
    parser.add_argument("--limit", type=int, help="largest file this process may write")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    builder = StandInBuilder()
    builder.size = args.bytes

    def during(report: Any) -> None:
        print("building", flush=True)
        while args.hold is not None and not args.hold.exists():
            time.sleep(0.05)

    def hang(handle: int) -> None:
        print("writing", flush=True)
        time.sleep(600)

    builder.during = during
    if args.hang:
        os.fsync = hang
    if args.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (args.limit, args.limit))

    def progress(seconds: float, share: float | None, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    engine = ensure_engine(args.model, (384, 384), builder, folder=args.folder, progress=progress)
    runtime = builder.open(engine.plan or engine.path.read_bytes(), engine.info, "it")
    peaks = runtime(np.zeros((1, 384, 384, 3), np.uint8))
    print(f"engine {engine.path} built {builder.builds} verdict {engine.info.verdict.state}")
    assert peaks.shape == (1, 17, 30, 15)


if __name__ == "__main__":
    main()
