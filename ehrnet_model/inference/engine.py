"""Engines built on this machine: when one is valid, where it lies, and how it gets there whole.

An engine belongs to one graph, size, TensorRT and GPU. All of that is its key; beside each
``KEY.engine`` lies ``KEY.engine.json`` with the key in clear, when and how long it was built, and
the verdict of the parity check. The folder they lie in is engine_folder.py's.

What builds is behind the seam ``Builder`` (tensorrt_builder.py is the one for TensorRT).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Protocol, Tuple

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.answers import read_answers
from ehrnet_model.inference.atomic import write_atomically
from ehrnet_model.inference.cuda import DeviceLost, OutOfDeviceMemory
from ehrnet_model.inference.decode import DecodeOptions
from ehrnet_model.inference.engine_folder import (
    FOLDER_VARIABLE,
    NO_PLACE,
    check_private,
    engine_folder,
    file_sha256,
    locked,
    make_private,
    memory_folder,
    state_of,
)
from ehrnet_model.inference.parity import DIFFERS, UNCHECKED, Verdict, check_engine
from ehrnet_model.inference.runtime import (
    ModelInfo,
    Runtime,
    check_size,
    info_from_json,
    info_to_json,
    model_info,
)

ENGINE_SUFFIX = ".engine"
REVISION = 5
"""Raised when tensorrt_builder.py changes what it tells TensorRT; engines of others are not run."""
_SIDECAR_SUFFIX = ".engine.json"

_log = logging.getLogger(__name__)

# Told about a build once a second: seconds so far, share done (0..1, None where TensorRT does not
# say), and what is going on.
Progress = Callable[[float, Optional[float], str], None]
# Told by a builder: share done and what is going on.
Report = Callable[[Optional[float], str], None]


@dataclass(frozen=True)
class Platform:
    """The machine an engine is for.

    Attributes:
        tensorrt: version with all its parts.
        gpu: the device's name.
        compute_capability: such as ``8.7``.
        system: release of the Jetson's system (L4T), empty elsewhere.
        multiprocessors: how many the GPU has switched on. Every Orin is named so; they differ in
            this, and some power modes switch a part off.
        board: the Jetson's own name, empty elsewhere.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    system: str = ""
    multiprocessors: int = 0
    board: str = ""


@dataclass(frozen=True)
class EngineSpec:
    """Everything that decides whether an engine is valid; its hash is the engine's key.

    Attributes:
        onnx_sha256: hash of the ONNX file.
        precision: ``fp32``, ``fp16`` or ``int8``: the graph's own.
        size_hw: the one input height and width.
        max_batch: most images per call.
        platform: TensorRT and GPU.
        settings: what the builder was told, by name.
    """

    onnx_sha256: str
    precision: str
    size_hw: Tuple[int, int]
    max_batch: int
    platform: Platform
    settings: Dict[str, Any] = field(default_factory=dict)

    def parts(self) -> Dict[str, str]:
        """Each part by the name a person knows it by."""
        height, width = self.size_hw
        parts = {
            "ONNX file": self.onnx_sha256[:12],
            "precision": self.precision,
            "input size": f"{height}x{width}",
            "batch": str(self.max_batch),
            "TensorRT": self.platform.tensorrt,
            "GPU": self.platform.gpu,
            "compute capability": self.platform.compute_capability,
            "system": self.platform.system,
            "multiprocessors": str(self.platform.multiprocessors),
            "board": self.platform.board,
        }
        parts.update({f"setting {k}": json.dumps(v) for k, v in sorted(self.settings.items())})
        return parts

    def key(self) -> str:
        """Hash over all parts (hex)."""
        text = json.dumps([dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: EngineSpec) -> List[str]:
        """Which parts differ, as ``TensorRT 10.3.0 instead of 8.6.1`` (mine instead of other's)."""
        mine, theirs = self.parts(), other.parts()
        names = [*mine, *(name for name in theirs if name not in mine)]
        return [
            f"{name} {mine.get(name) or 'none'} instead of {theirs.get(name) or 'none'}"
            for name in names
            if mine.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True)
class EngineInfo:
    """The description beside an engine.

    Attributes:
        spec: what it is valid for.
        model: the model's own description.
        onnx: name of the ONNX file.
        sha256: hash of the engine file; a pair that does not fit is not loaded.
        built: date and time, UTC, ISO 8601.
        seconds: how long the build took.
        layers: number of the engine's layers by precision, as TensorRT's inspector names it; empty
            where it does not say.
        verdict: does it give the FP32 answers?
    """

    spec: EngineSpec
    model: ModelInfo
    onnx: str
    sha256: str
    built: str
    seconds: float
    layers: Dict[str, int]
    verdict: Verdict

    def to_json(self) -> str:
        """Everything in clear, the key first."""
        values = {
            "key": self.spec.key(),
            "spec": dataclasses.asdict(self.spec),
            "verdict": self.verdict.to_dict(),
            "onnx": self.onnx,
            "built": self.built,
            "seconds": self.seconds,
            "layers": self.layers,
            "sha256": self.sha256,
            "model": json.loads(info_to_json(self.model)),
        }
        return json.dumps(values, indent=1)

    @staticmethod
    def from_json(text: str, where: str) -> EngineInfo:
        """Reads to_json's text. Raises EhrnetError, naming ``where``, for anything else."""
        try:
            values = json.loads(text)
            spec = dict(values["spec"])
            spec["platform"] = Platform(**spec["platform"])
            spec["size_hw"] = check_size(spec["size_hw"])
            spec["max_batch"] = int(spec["max_batch"])
            return EngineInfo(
                spec=EngineSpec(**spec),
                model=info_from_json(json.dumps(values["model"]), where),
                onnx=str(values["onnx"]),
                sha256=str(values["sha256"]),
                built=str(values["built"]),
                seconds=float(values["seconds"]),
                layers=dict(values["layers"]),
                verdict=Verdict.from_dict(values["verdict"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EhrnetError(
                f"the description {where} of the TensorRT engine is missing or broken "
                f"({error!r}): build the engine again."
            ) from None


@dataclass(frozen=True)
class Built:
    """What a builder gives.

    Attributes:
        plan: the serialised engine.
        timing_cache: what makes the next build faster; may be empty.
        layers: see EngineInfo.
        fault: in what it is not the graph that it was built from; empty: in nothing.
    """

    plan: bytes
    timing_cache: bytes = b""
    layers: Dict[str, int] = field(default_factory=dict)
    fault: str = ""


class Builder(Protocol):
    """Makes engines on one machine."""

    def platform(self) -> Platform:
        """What engines made here are for. Raises EhrnetError where none can be made."""
        ...

    def settings(self) -> Dict[str, Any]:
        """What decides how an engine turns out, beside the spec's other parts; JSON values."""
        ...

    def build(self, onnx: Path, spec: EngineSpec, timing_cache: bytes, report: Report) -> Built:
        """Minutes of work. Raises EhrnetError with the reason when it cannot be done."""
        ...

    def open(self, plan: bytes, info: EngineInfo, where: str) -> Runtime:
        """Raises EhrnetError, naming ``where``, when the engine does not load.

        OutOfDeviceMemory when it might, were there more memory.
        """
        ...


@dataclass(frozen=True)
class Engine:
    """An engine that is there.

    Attributes:
        info: its description.
        path: its file; None when no place could be written, and ``plan`` is all there is.
        plan: the serialised engine when it was built just now, else None.
    """

    info: EngineInfo
    path: Optional[Path]
    plan: Optional[bytes] = None


def check_batch(max_batch: int) -> None:
    """Raises EhrnetError where no engine can take so many images at once."""
    if max_batch < 1:
        raise EhrnetError(f"a batch of {max_batch} is not possible: give 1 or more.")


def make_spec(
    onnx: Path, size_hw: Tuple[int, int], max_batch: int, builder: Builder
) -> Tuple[EngineSpec, ModelInfo]:
    """What an engine of this file on this machine is valid for.

    Raises:
        EhrnetError: the file is not one of ours, the size or batch is not possible, or nothing can
            be built here.
    """
    info = model_info(onnx)
    check_batch(max_batch)
    spec = EngineSpec(
        onnx_sha256=file_sha256(onnx),
        precision=info.precision,
        size_hw=check_size(size_hw),
        max_batch=max_batch,
        platform=builder.platform(),
        settings=builder.settings(),
    )
    return spec, info


def ensure_engine(
    onnx: Path,
    size_hw: Tuple[int, int],
    builder: Builder,
    max_batch: int = 1,
    folder: Optional[Path] = None,
    rebuild: bool = False,
    progress: Optional[Progress] = None,
) -> Engine:
    """The engine for a model on this machine; built, checked and stored when there is none.

    Two processes that want the same engine build it once: the second waits for the first. A
    process killed in the middle leaves nothing that would be taken for an engine. A stored engine
    that could not be checked is checked as soon as it can be. One that was found to be wrong is
    stored with that verdict: another would be as wrong, and take minutes each time.

    Args:
        onnx: the file written by ``ehrnet export``; its stored answers lie beside it.
        size_hw: height and width of all images.
        builder: what builds and opens engines here.
        max_batch: most images per call.
        folder: where engines lie, see engine_folder.
        rebuild: build even when a valid one is there.
        progress: told once a second while waiting and building.

    Raises:
        OutOfDeviceMemory: the GPU has too little memory to open it now; what is stored stays.
        EhrnetError: it cannot be built, or it does not give the model's answers.
    """
    onnx = Path(onnx)
    spec, info = make_spec(onnx, size_hw, max_batch, builder)
    folder = engine_folder(folder)
    stem = _stem(spec, info)
    before = state_of(folder / (stem + ENGINE_SUFFIX))
    engine = None if rebuild else _usable(onnx, folder, stem, spec, builder)
    if engine is not None:
        return engine
    with _Ticker(progress) as ticker, locked(folder, stem, ticker.wait) as waited:
        # Somebody else has been building it, or did so between the look above and the lock.
        if waited or state_of(folder / (stem + ENGINE_SUFFIX)) != before:
            engine = _usable(onnx, folder, stem, spec, builder)
            if engine is not None:
                return engine
        elif not rebuild:
            _log.warning("%s", why_not_there(spec, folder))
        timing = _timing_file(folder, spec)
        started = time.monotonic()
        built = builder.build(onnx, spec, _read(timing), ticker.report)
        if built.timing_cache and folder.is_dir():
            with contextlib.suppress(OSError):  # only costs time
                write_atomically(timing, built.timing_cache, 0o600)
        described = EngineInfo(
            spec=spec,
            model=info,
            onnx=onnx.name,
            sha256=hashlib.sha256(built.plan).hexdigest(),
            built=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 1),
            layers=built.layers,
            verdict=Verdict(UNCHECKED, "its check was cut short."),
        )
        ticker.report(None, "checking its answers")
        try:
            verdict = Verdict(DIFFERS, built.fault)
            if not built.fault:
                verdict = _judge(onnx, built.plan, described, builder, "the new engine")
        except (OutOfDeviceMemory, DeviceLost, KeyboardInterrupt):
            _store(folder, stem, built, described)  # to be checked when it is asked for next
            raise
        described = dataclasses.replace(described, verdict=verdict)
        path = _store(folder, stem, built, described)
        _refuse_wrong(verdict, "the new engine")
    return Engine(described, path, built.plan)


def find_engine(
    model: Path,
    size_hw: Optional[Tuple[int, int]] = None,
    platform: Optional[Platform] = None,
    folder: Optional[Path] = None,
    batch: int = 1,
) -> Optional[Engine]:
    """The stored engine meant by a model path, or None; does not load it.

    Of several it is one of the smallest batch that suffices, and of these the one built last; none
    that was found to be wrong, nor by another revision of what builds them.

    Args:
        model: an ``.engine`` file, or an ``.onnx`` file whose engines are looked for.
        size_hw: only engines of this size; None: of any, but those for second looks come last.
        platform: only engines for this machine.
        folder: where engines lie, see engine_folder.
        batch: only engines that take so many images at once; does not hold for an ``.engine``.

    Raises:
        EhrnetError: a file that cannot be read, an engine without a readable description, or one
            by its path where others can write.
    """
    model = Path(model)
    if model.suffix == ENGINE_SUFFIX:
        if not os.path.isfile(model):
            return None
        for place in (model.parent, model.resolve().parent):  # a link's, and where it leads
            check_private(place)
        return _read_engine(model)
    sha256 = file_sha256(model)
    fitting = [
        engine
        for engine in stored_engines(folder)
        if engine.info.spec.onnx_sha256 == sha256
        and size_hw in (None, engine.info.spec.size_hw)
        and platform in (None, engine.info.spec.platform)
        and engine.info.verdict.state != DIFFERS
        and engine.info.spec.settings.get("revision", REVISION) == REVISION
    ]
    if size_hw is None:
        fitting = [engine for engine in fitting if not is_closer(engine.info)] or fitting
    fitting = [engine for engine in fitting if engine.info.spec.max_batch >= batch]
    newest_first = sorted(fitting, key=lambda engine: engine.info.built, reverse=True)
    return min(newest_first, key=lambda engine: engine.info.spec.max_batch, default=None)


def is_closer(info: EngineInfo) -> bool:
    """Whether an engine has the size that its model looks again at people with."""
    side = info.model.decode.get("second_look_size", DecodeOptions().second_look_size)
    return info.spec.size_hw == (side, side)


def stored_engines(folder: Optional[Path] = None) -> List[Engine]:
    """Every engine in the cache and in memory that has a readable description."""
    found = []
    for place in (engine_folder(folder), memory_folder()):
        try:
            check_private(place)
            paths = sorted(place.glob(f"*{ENGINE_SUFFIX}"))
        except FileNotFoundError:
            continue
        except (OSError, EhrnetError) as error:
            _log.warning("No engine is taken from %s: %s", place, error)
            continue
        for path in paths:
            try:
                found.append(_read_engine(path))
            except EhrnetError as error:
                _log.warning("%s", error)
    return found


def read_plan(engine: Engine) -> bytes:
    """The bytes of an engine file, proved to be those its description speaks of.

    Raises:
        EhrnetError: it cannot be read, others can write to it, or it is another or damaged file.
    """
    if engine.plan is not None or engine.path is None:
        return engine.plan or b""
    try:
        check_private(engine.path)
        plan = engine.path.read_bytes()
    except OSError as error:
        raise EhrnetError(f"the engine {engine.path} cannot be read: {error.strerror}.") from None
    if hashlib.sha256(plan).hexdigest() != engine.info.sha256:
        raise EhrnetError(
            f"the engine {engine.path} is damaged, or not the one its description speaks of: build "
            "it again with `ehrnet build-engine`."
        )
    return plan


def why_not_there(spec: EngineSpec, folder: Optional[Path] = None) -> str:
    """One sentence: no engine yet, or which part of the key differs from the nearest one."""
    near: Optional[List[str]] = None
    for engine in stored_engines(folder):
        other = engine.info.spec
        if other.key() == spec.key():
            return f"The engine {engine.path} does not load: nothing of its key differs."
        # Of another model, size or precision: not this engine's forerunner.
        if other.onnx_sha256 == spec.onnx_sha256 and other.size_hw == spec.size_hw:
            differences = spec.differences(other)
            if near is None or len(differences) < len(near):
                near = differences
    if near is None:
        height, width = spec.size_hw
        return f"There is no engine yet for this model at {height}x{width}, {spec.precision}."
    return f"The stored engine does not fit this machine any more: {'; '.join(near)}."


def _stem(spec: EngineSpec, info: ModelInfo) -> str:
    height, width = spec.size_hw
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in info.variant)
    batch = f"b{spec.max_batch}"
    return f"{name}-{spec.precision}-{height}x{width}-{batch}-{spec.key()[:16]}"


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name[: -len(ENGINE_SUFFIX)] + _SIDECAR_SUFFIX)


def _read_engine(path: Path) -> Engine:
    sidecar = _sidecar(path)
    try:
        text = sidecar.read_text()
    except (OSError, ValueError) as error:
        raise EhrnetError(
            f"the description {sidecar} of the TensorRT engine is missing or broken ({error}): "
            "build the engine again."
        ) from None
    return Engine(EngineInfo.from_json(text, str(sidecar)), path)


def _usable(
    onnx: Path, folder: Path, stem: str, spec: EngineSpec, builder: Builder
) -> Optional[Engine]:
    """The stored engine when it is whole and loads; says why not.

    Raises EhrnetError for one that gives wrong answers: another would give the same.
    """
    for place in (folder, memory_folder()):
        path = place / (stem + ENGINE_SUFFIX)
        if not os.path.isfile(path):  # also where that cannot be seen
            continue
        check_private(place)
        try:
            engine = _read_engine(path)
            if engine.info.spec != spec:
                raise EhrnetError(
                    f"{path} says of itself {'; '.join(engine.info.spec.differences(spec))}."
                )
            plan = read_plan(engine)
            if engine.info.verdict.state != DIFFERS:
                builder.open(plan, engine.info, str(path)).close()
        except (OutOfDeviceMemory, DeviceLost):  # another engine would fare no better
            raise
        except EhrnetError as error:
            _log.warning("Building the engine again, with an unchanged key: %s", error)
            continue
        info = engine.info
        if info.verdict.state == UNCHECKED:  # perhaps the answers are there now
            verdict = _judge(onnx, plan, info, builder, f"the engine {path}")
            if verdict != info.verdict:
                info = dataclasses.replace(info, verdict=verdict)
                with contextlib.suppress(OSError):  # then it is judged again next time
                    write_atomically(_sidecar(path), info.to_json().encode(), 0o600)
        _refuse_wrong(info.verdict, f"the engine {path}")
        return dataclasses.replace(engine, info=info)
    return None


def _judge(onnx: Path, plan: bytes, info: EngineInfo, builder: Builder, name: str) -> Verdict:
    """Runs the stored inputs through an engine. Raises EhrnetError when it does not load."""
    try:
        answers = read_answers(onnx, info.model)
    except EhrnetError as error:
        verdict = Verdict(UNCHECKED, str(error))
    else:
        runtime = builder.open(plan, info, name)
        try:
            verdict = check_engine(runtime, answers, info.spec.precision, info.spec.max_batch)
        finally:
            runtime.close()
    if verdict.state == UNCHECKED:
        _log.warning("Nothing proves %s to be right: %s", name, verdict.reason)
    return verdict


def _refuse_wrong(verdict: Verdict, name: str) -> None:
    if verdict.state == DIFFERS:
        raise EhrnetError(
            f"{name} is wrong and is not used: {verdict.reason} Export and build the model in "
            "another precision (fp32 is the safest)."
        )


def _store(folder: Path, stem: str, built: Built, info: EngineInfo) -> Optional[Path]:
    """Writes engine, then description: without the second, the first is nothing."""
    for place in (folder, memory_folder()):
        try:
            make_private(place)
            path = place / (stem + ENGINE_SUFFIX)
            write_atomically(path, built.plan, 0o600)
            write_atomically(_sidecar(path), info.to_json().encode(), 0o600)
        except OSError as error:
            if error.errno not in NO_PLACE:
                raise EhrnetError(f"the engine cannot be stored in {place}: {error}.") from None
            _log.warning(
                "The engine of %.1f MB could not be stored in %s (%s): %s. Make room, or name "
                "another folder with --engines or $%s.",
                len(built.plan) / 1e6,
                place,
                error.strerror,
                "it is kept in memory until the machine is switched off" if place == folder
                else "it lives in this process only and is built again next time",
                FOLDER_VARIABLE,
            )  # fmt: skip
            continue
        return path
    return None


def _timing_file(folder: Path, spec: EngineSpec) -> Path:
    """One timing cache for all models of a machine; the last build's wins."""
    text = json.dumps(dataclasses.asdict(spec.platform), sort_keys=True)
    return folder / f"timing-{hashlib.sha256(text.encode()).hexdigest()[:16]}.cache"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


class _Ticker:
    """Calls ``progress`` once a second while its block runs, with what was reported last."""

    def __init__(self, progress: Optional[Progress]) -> None:
        self._progress = progress
        self._last: Tuple[Optional[float], str] = (None, "starting")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine progress", daemon=True)

    def report(self, share: Optional[float], text: str) -> None:
        self._last = (share, text)

    def wait(self) -> None:
        self.report(None, "another process builds this engine, waiting for it")

    def __enter__(self) -> _Ticker:
        if self._progress is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        assert self._progress is not None
        started = time.monotonic()
        while not self._done.wait(1.0):
            self._progress(time.monotonic() - started, *self._last)
