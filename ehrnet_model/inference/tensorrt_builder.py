"""Builds TensorRT engines: ONNX in, serialised engine out, on the robot's own GPU.

Written against TensorRT 8.5 to 11 by their published interfaces: a test runs this file against
each version's signatures, and NVIDIA's own parser and builder (TensorRT-RTX, which need no GPU)
take every exported graph. **No engine has been built with TensorRT on a GPU or a Jetson yet**;
unproved are the time it takes, the inspector's words for precisions, and on TensorRT 8 that the
layers named below are kept in float32.

The graph says what is computed in which precision. From TensorRT 10 on networks are strongly typed
and that is all. Before, the builder may lower anything once a precision is allowed, so the layers
that must not be lowered carry ``FP32_PREFIX`` in their names and are pinned.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.cuda import Cuda
from ehrnet_model.inference.engine import (
    REVISION,
    Built,
    EngineInfo,
    EngineSpec,
    Platform,
    Report,
)
from ehrnet_model.inference.runtime import FP32_PREFIX, INPUT_NAME, Runtime
from ehrnet_model.inference.tensorrt_runtime import (
    TensorRTRuntime,
    create,
    import_tensorrt,
    platform,
)

WORKSPACE_BYTES = 1 << 30
OPTIMISATION_LEVEL = 3

_log = logging.getLogger(__name__)


class TensorRTBuilder:
    """Builds on GPU 0. Raises EhrnetError where TensorRT or the GPU is missing."""

    def __init__(self) -> None:
        self._trt = import_tensorrt()
        self._cuda = Cuda()

    def platform(self) -> Platform:
        """This machine's TensorRT and GPU."""
        return platform(self._trt, self._cuda)

    def settings(self) -> Dict[str, Any]:
        """What the builder is told."""
        return {"optimisation level": OPTIMISATION_LEVEL, "tf32": False, "revision": REVISION}

    def build(self, onnx: Path, spec: EngineSpec, timing_cache: bytes, report: Report) -> Built:
        """Builds and looks at the result; see build_plan for the errors."""
        workspace = min(WORKSPACE_BYTES, self._cuda.free_memory() * 2 // 5)
        unused = self._cuda.unused_memory()
        if unused < workspace:
            _log.warning(
                "Only %d MiB of memory are unused, the rest holds copies of files: TensorRT may "
                "leave out fast kernels. `sudo sysctl vm.drop_caches=1` before a build frees it.",
                unused >> 20,
            )
        built = build_plan(self._trt, onnx, spec, workspace, timing_cache, report)
        inspected = _inspect(self._trt, built.plan)
        fault = wrong_precisions(layer_precisions(inspected, weights_only=True), spec.precision)
        return Built(built.plan, built.timing_cache, layer_precisions(inspected), fault)

    def open(self, plan: bytes, info: EngineInfo, where: str) -> Runtime:
        """The engine, ready to run."""
        return TensorRTRuntime(plan, info, where)


def build_plan(
    trt: Any,
    onnx: Path,
    spec: EngineSpec,
    workspace_bytes: int,
    timing_cache: bytes = b"",
    report: Optional[Report] = None,
) -> Built:
    """The serialised engine, with ``trt`` the module tensorrt or one with its interface.

    Args:
        trt: the module.
        onnx: file written by ``ehrnet export``.
        spec: size, batch and precision are taken from it.
        workspace_bytes: scratch memory the engine may use.
        timing_cache: of an earlier build on this machine, may be empty.
        report: told what share is done (from TensorRT 10 on).

    Raises:
        EhrnetError: the parser or the builder refuses the model, with its own words.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = create(trt.Builder, logger)
    flag = trt.NetworkDefinitionCreationFlag
    # From 10 on types are the file's own; before, batch had to be asked for. The values of these
    # flags differ between versions.
    typed = hasattr(flag, "STRONGLY_TYPED")
    network = builder.create_network(
        1 << int(flag.STRONGLY_TYPED if typed else flag.EXPLICIT_BATCH)
    )
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        first = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise EhrnetError(
            f"TensorRT {trt.__version__} cannot read {onnx}: {first}; export the model again."
        )
    # The file serves every size. What is known here is told to the builder: it optimises better,
    # and of tensors whose shape it does not know its inspector names no type.
    image = network.get_input(0)
    image.shape = (1 if spec.max_batch == 1 else -1, *spec.size_hw, 3)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    # With it float32 would silently have float16's ten bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = OPTIMISATION_LEVEL
    if not typed and spec.precision != "fp32":
        _allow_precision(trt, network, config, spec.precision)
    if spec.max_batch > 1:
        profile = builder.create_optimization_profile()
        one, most = (1, *spec.size_hw, 3), (spec.max_batch, *spec.size_hw, 3)
        # Kernels are chosen for the full batch: one image alone is seldom what such an engine gets.
        profile.set_shape(INPUT_NAME, one, most, most)
        config.add_optimization_profile(profile)
    cache = config.create_timing_cache(timing_cache)
    if cache is None or not config.set_timing_cache(cache, False):
        # Another version's or a damaged one.
        config.set_timing_cache(config.create_timing_cache(b""), False)
    phases = Phases(report or (lambda share, text: None))
    if report is not None:
        report(None, "TensorRT is building")
        if hasattr(config, "progress_monitor"):
            config.progress_monitor = _monitor(trt, phases)
    plan = builder.build_serialized_network(network, config)
    if phases.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise EhrnetError(
            f"TensorRT {trt.__version__} could not build {onnx} for "
            f"{spec.size_hw[0]}x{spec.size_hw[1]} with {workspace_bytes >> 20} MiB of working "
            "memory: see its messages in the log; often memory is short."
        )
    timing = config.get_timing_cache()
    return Built(bytes(plan), b"" if timing is None else bytes(timing.serialize()))


def layer_precisions(information: str, weights_only: bool = False) -> Dict[str, int]:
    """How many layers compute in what precision, from the engine inspector's JSON.

    A layer's weights say it, for others what they give, unless ``weights_only``: "INT8" may there
    be the word for a format in which indices lie. The words for a type changed between
    versions; what is not recognised is not counted, nor what the inspector does not know: for
    batches of several sizes it says "N/A due to dynamic shapes" of what layers give.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    counted: Dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer, dict):
            continue
        outputs = " ".join(str(o.get("Format/Datatype", "")) for o in layer.get("Outputs", []))
        weights = layer.get("Weights")
        kind = ""
        if isinstance(weights, dict) and weights.get("Count") != 0:
            kind = str(weights.get("Type", ""))
        name = _precision_of(kind) or ("" if weights_only else _precision_of(outputs))
        if name:
            counted[name] = counted.get(name, 0) + 1
    return counted


# In the order in which they decide: a layer with an INT8 output counts as such.
_TYPE_WORDS: Tuple[Tuple[Tuple[str, ...], str], ...] = (
    (("bf16", "bfloat"), "bf16"),
    (("int8",), "int8"),
    (("fp16", "half"), "fp16"),
    (("fp32", "float"), "fp32"),
)


def _precision_of(said: str) -> str:
    """Our name for the inspector's words; empty where there is none."""
    said = said.lower().replace("uint8", "")  # pixels: nothing is computed in it
    return next((name for words, name in _TYPE_WORDS if any(w in said for w in words)), "")


def wrong_precisions(layers: Dict[str, int], precision: str) -> str:
    """In what an engine is not its graph, by the precisions of its layers' weights; or empty.

    Where TensorRT does not name them that is said; the answers are compared in any case.
    """
    if not layers:
        _log.warning("TensorRT's inspector names no precision of weights; answers are compared.")
        return ""
    lower = {"fp32": (), "fp16": ("fp16",), "int8": ("int8", "fp16")}[precision]
    found = ", ".join(f"{count} {name}" for name, count in sorted(layers.items()))
    if lower and not layers.get(lower[0]):
        return f"it has no {precision} layer ({found}), TensorRT did not follow the graph."
    unwanted = [name for name in layers if name != "fp32" and name not in lower]
    if unwanted:
        return (
            f"it has {unwanted[0]} layers where the graph is {precision} ({found}), TensorRT did "
            "not follow the graph."
        )
    return ""


class Phases:
    """Nested phases of a build as one share; TensorRT names them and counts their steps.

    Attributes:
        interrupted: set by whoever tells of phases when the user wants the build to end.
    """

    def __init__(self, report: Report) -> None:
        self.interrupted = False
        self._report = report
        # Name, steps, steps done; outermost first.
        self._open: List[Tuple[str, int, int]] = []

    def start(self, name: str, steps: int) -> None:
        """A phase begins, inside those that are open."""
        self._open.append((name, max(1, steps), 0))
        self._tell()

    def step(self, name: str, step: int) -> None:
        """Step ``step``, counted from 0, of a phase is done."""
        self._open = [(n, s, step + 1 if n == name else d) for n, s, d in self._open]
        self._tell()

    def finish(self, name: str) -> None:
        """A phase and what is still open inside it are over."""
        names = [n for n, _, _ in self._open]
        if name in names:
            del self._open[names.index(name) :]

    def _tell(self) -> None:
        share, weight = 0.0, 1.0
        for _, steps, done in self._open:
            share += weight * min(done, steps) / steps
            weight /= steps
        self._report(min(share, 1.0), self._open[-1][0] if self._open else "TensorRT is building")


def _monitor(trt: Any, phases: Phases) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            self._tell(phases.start, phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phases.step, phase_name, step)
            return not phases.interrupted  # whether to go on

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phases.finish, phase_name)

        def _tell(self, change: Callable[..., None], *values: Any) -> None:
            try:
                change(*values)
            except KeyboardInterrupt:  # TensorRT would swallow it
                phases.interrupted = True

    return Monitor()


def _allow_precision(trt: Any, network: Any, config: Any, precision: str) -> None:
    """TensorRT 8: a precision is allowed for all layers and forbidden for those named so."""
    builder_flag = trt.BuilderFlag
    config.set_flag(builder_flag.FP16)
    if precision == "int8":  # float16 around the quantised layers
        config.set_flag(builder_flag.INT8)
    config.set_flag(builder_flag.OBEY_PRECISION_CONSTRAINTS)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if not layer.name.startswith(FP32_PREFIX):
            continue
        kinds = [layer.get_output(i).dtype for i in range(layer.num_outputs)]
        given = [layer.get_input(i) for i in range(layer.num_inputs)]
        # What comes in counts as well: TensorRT would choose a type for it, and indices that are
        # cast from half a float are other indices.
        kinds_in = [tensor.dtype for tensor in given if tensor is not None]
        if trt.DataType.FLOAT not in [*kinds, *kinds_in]:
            continue
        layer.precision = trt.DataType.FLOAT
        for i, kind in enumerate(kinds):
            if kind == trt.DataType.FLOAT:
                layer.set_output_type(i, trt.DataType.FLOAT)


def _inspect(trt: Any, plan: bytes) -> str:
    logger = trt.Logger(trt.Logger.WARNING)
    runtime = create(trt.Runtime, logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EhrnetError(
            f"TensorRT {trt.__version__} does not accept the engine it has just built: see its "
            "messages in the log; often memory is short."
        )
    inspector = engine.create_engine_inspector()
    text = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    del inspector  # before its engine, which TensorRT 8.5 does not keep alive for it
    return text
