"""Weights in and out: our own files, and those of the published code.

Our files are safetensors: tensors by module name, and one JSON object in the header under
``ehrnet`` that says what they are (``CheckpointMeta``). Reading one never executes anything.

``from_reference`` maps the published networks' state_dict to ours. What circulates comes in several
containers (flat, inside a training checkpoint, with the prefixes wrappers leave); all are opened
with weights-only unpickling, and every key must be accounted for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ehrnet_model import __version__
from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.atomic import check_source, write_atomically
from ehrnet_model.inference.runtime import COORDINATES, MAX_SMOOTH
from ehrnet_model.network.classifier import EfficientNet
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.network.hrnet import BLOCKS_PER_BRANCH
from ehrnet_model.skeleton import COCO_17, SKELETONS
from ehrnet_model.variants import RELATED, VARIANTS, Variant

QUALITIES = ("released", "preview", "imported", "random")
_FORMAT = 1
_KEY = "ehrnet"
_BACKBONES = {variant.backbone_name: variant for variant in VARIANTS.values()}
_COUNTER = "num_batches_tracked"
# Older weights-only unpickling runs code of crafted files (CVE-2025-32434, CVE-2026-24747).
_SAFE_TORCH = (2, 10)


@dataclass(frozen=True)
class CheckpointMeta:
    """What is stored with weights.

    Attributes:
        variant: ``H0`` .. ``H-4`` or a related network (``variants.RELATED``), or ``B0`` ..
            ``B-4`` for a classifier.
        skeleton: name of the keypoint set (``ehrnet_model.skeleton.SKELETONS``); empty for a
            classifier.
        weights_name: short human name of the weights.
        quality: ``released``, ``preview``, ``imported`` or ``random``.
        coordinates: one of ``inference.runtime.COORDINATES``.
        smooth: how far heatmaps are smoothed before peaks are looked for, see ``ModelInfo``.
        input_size: short side of the network input, in pixels, that suits these weights best; 0:
            the variant's own.
        decode: decode defaults that suit these weights (fields of DecodeOptions).
        metrics: what was measured with them, by name, with the setting in the name or beside it.
        recipe: how they were made, for people to read.
        licence: of the weights.
        version: version of ehrnet_model that wrote the file.
        weights_sha256: hash of the tensors, see ``weights_sha256``; filled in when saved.
    """

    variant: str
    skeleton: str = COCO_17.name
    weights_name: str = ""
    quality: str = "random"
    coordinates: str = "pixel-centre"
    smooth: float = 0.0
    input_size: int = 0
    decode: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    version: str = __version__
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        _table_row(self.variant)
        skeletons = ("",) if self.variant in _BACKBONES else tuple(SKELETONS)
        for name, allowed in (
            ("quality", QUALITIES),
            ("coordinates", tuple(COORDINATES)),
            ("skeleton", skeletons),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise EhrnetError(
                    f"{name} '{value}' of {self.variant} weights is not known: it must be one of "
                    f"{', '.join(repr(a) for a in allowed)}."
                )
        if not isinstance(self.smooth, (int, float)) or not 0 <= self.smooth <= MAX_SMOOTH:
            raise EhrnetError(
                f"heatmaps cannot be smoothed by {self.smooth!r} cells: give 0 (not) to "
                f"{MAX_SMOOTH:g}."
            )

    @property
    def phi(self) -> int:
        """The compound coefficient, 0 .. -4."""
        return _table_row(self.variant).phi


def _table_row(name: str) -> Variant:
    variant = VARIANTS.get(name) or RELATED.get(name) or _BACKBONES.get(name)
    if variant is None:
        names = ", ".join([*VARIANTS, *RELATED, *_BACKBONES])
        raise EhrnetError(f"variant '{name}' does not exist: choose one of {names}.")
    return variant


# Our own files ---------------------------------------------------------------------------------


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values, independent of order, device and memory layout."""
    digest = hashlib.sha256()
    for key in sorted(state):
        array = state[key].detach().cpu().contiguous().numpy()
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_checkpoint(
    path: str | os.PathLike[str], model_state: Mapping[str, Tensor], meta: CheckpointMeta
) -> CheckpointMeta:
    """Write weights and what they are; the file is there whole or not at all.

    Args:
        path: target, by custom ``*.safetensors``; its folder must exist.
        model_state: ``state_dict()`` of an ``EfficientHRNet`` or ``EfficientNet``, any device.
        meta: everything but the hash and the version, which are filled in.

    Returns:
        The description as it was written.
    """
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous() for key, value in model_state.items()}
    meta = dataclasses.replace(meta, weights_sha256=weights_sha256(tensors), version=__version__)
    header = json.dumps({"format": _FORMAT, **dataclasses.asdict(meta)}, sort_keys=True)
    _write(Path(path), save(tensors, {_KEY: header}))
    return meta


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise EhrnetError(
            f"cannot write {path}: {error.strerror}; what was there before is untouched, choose "
            "another folder or make room."
        ) from error


def load_checkpoint(
    path: str | os.PathLike[str], variant: str | None = None
) -> tuple[dict[str, Tensor], CheckpointMeta]:
    """Read a file of ours.

    Args:
        path: a file written by ``save_checkpoint``.
        variant: the variant that is wanted, or None for whatever it is.

    Returns:
        Tensors by key on the CPU, and their description.

    Raises:
        EhrnetError: the file is missing, not one of ours, damaged, or of another variant.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    check_source(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        if _looks_pickled(path):
            named = f" --variant {variant}" if variant else ""
            raise EhrnetError(
                f"{path} is a PyTorch file, not one of ours: convert it with 'ehrnet "
                f"import-checkpoint {path}{named} -o OUT.safetensors'."
            ) from error
        raise EhrnetError(
            f"{path} is truncated or damaged ({error}): fetch or make it again."
        ) from error
    meta = _parse_meta(path, metadata)
    if variant is not None and meta.variant != variant:
        raise EhrnetError(
            f"{path} holds weights of {meta.variant}, but {variant} is wanted: choose the other "
            "file or the other variant."
        )
    if weights_sha256(state) != meta.weights_sha256:
        raise EhrnetError(
            f"{path} is damaged: its weights do not have the hash written in it; fetch it again."
        )
    return state, meta


def _parse_meta(path: Path, metadata: Mapping[str, str]) -> CheckpointMeta:
    foreign = (
        f"{path} is a safetensors file without our description: if it holds weights of the "
        f"published networks, convert it with 'ehrnet import-checkpoint {path} -o OUT.safetensors'."
    )
    if _KEY not in metadata:
        raise EhrnetError(foreign)
    try:
        entries = json.loads(metadata[_KEY])
        version = entries.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise EhrnetError(foreign) from error
    if version != _FORMAT:
        raise EhrnetError(
            f"{path} has format {version}, this version reads {_FORMAT}: update ehrnet_ros."
        )
    known = {f.name for f in dataclasses.fields(CheckpointMeta)}
    try:
        return CheckpointMeta(**{key: value for key, value in entries.items() if key in known})
    except TypeError as error:
        raise EhrnetError(f"{path} does not say which variant it holds: make it again.") from error
    except EhrnetError as error:
        raise EhrnetError(f"{path}: {error}") from error


def load_network(
    path: str | os.PathLike[str], variant: str | None = None
) -> tuple[EfficientHRNet, CheckpointMeta]:
    """Read a pose network of ours, in evaluation mode on the CPU. Raises EhrnetError."""
    state, meta = load_checkpoint(path, variant)
    if meta.variant in _BACKBONES:
        raise EhrnetError(
            f"{path} holds the classifier {meta.variant}, not a pose network: it can only "
            "initialise a backbone."
        )
    network = build(meta.variant, SKELETONS[meta.skeleton].num_keypoints)
    assert isinstance(network, EfficientHRNet)
    load_state(network, state, str(path))
    return network.eval(), meta


def load_classifier(
    path: str | os.PathLike[str], variant: str | None = None
) -> tuple[EfficientNet, CheckpointMeta]:
    """Read a classifier of ours, in evaluation mode on the CPU. Raises EhrnetError."""
    state, meta = load_checkpoint(path, variant)
    if meta.variant not in _BACKBONES or "linear.bias" not in state:
        raise EhrnetError(f"{path} holds the pose network {meta.variant}, not a classifier.")
    network = build(meta.variant, classes=len(state["linear.bias"]))
    assert isinstance(network, EfficientNet)
    load_state(network, state, str(path))
    return network.eval(), meta


def build(name: str, keypoints: int = 17, classes: int = 1000) -> EfficientHRNet | EfficientNet:
    """A fresh network by the name of its variant, ``H0`` .. or ``B0`` ... Raises EhrnetError."""
    row = _table_row(name)
    return EfficientNet(row, classes) if name in _BACKBONES else EfficientHRNet(row, keypoints)


def load_state(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Put tensors into a network. Raises EhrnetError that names the first key that does not fit."""
    _compare({key: tuple(t.shape) for key, t in network.state_dict().items()}, state, origin)
    network.load_state_dict(dict(state))


def _compare(
    wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], origin: str
) -> None:
    missing = [key for key in wanted if key not in state]
    misshapen = [k for k, shape in wanted.items() if k in state and state[k].shape != shape]
    extra = [key for key in state if key not in wanted]
    if not (missing or misshapen or extra):
        return
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing (first: {missing[0]})")
    if misshapen:
        key = misshapen[0]
        faults.append(
            f"{len(misshapen)} of another shape (first: {key}, {tuple(state[key].shape)} instead "
            f"of {tuple(wanted[key])})"
        )
    if extra:
        faults.append(f"{len(extra)} unknown (first: {extra[0]})")
    raise EhrnetError(f"the weights in {origin} do not fit: of their keys {', '.join(faults)}.")


def _looks_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors header may begin with any length, but its ninth byte opens a JSON object.
    # A shorter file is neither.
    magic = start[:2] == b"PK" or start[:1] == b"\x80"
    return magic and len(start) == 9 and start[8:] != b"{"


# The published networks' files -----------------------------------------------------------------


def _backbone_names(variant: Variant) -> dict[str, str]:
    names = {"stem.conv": "features.0.1", "stem.norm": "features.0.2"}
    index = 0
    for s, stage in enumerate(variant.stages):
        for block in range(stage.repeats):
            index += 1
            ours, theirs = f"stages.{s}.{block}", f"features.{index}.conv"
            step = 0
            if stage.expand != 1:
                names[f"{ours}.expand.conv"] = f"{theirs}.0.1"
                names[f"{ours}.expand.norm"] = f"{theirs}.0.2"
                step = 1
            names[f"{ours}.depthwise.conv"] = f"{theirs}.{step}.1"
            names[f"{ours}.depthwise.norm"] = f"{theirs}.{step}.2"
            names[f"{ours}.squeeze.reduce"] = f"{theirs}.{step + 1}.se.1"
            names[f"{ours}.squeeze.restore"] = f"{theirs}.{step + 1}.se.3"
            names[f"{ours}.project.conv"] = f"{theirs}.{step + 2}"
            names[f"{ours}.project.norm"] = f"{theirs}.{step + 3}"
    return {f"backbone.{ours}": theirs for ours, theirs in names.items()}


def _block_names(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}.first.conv": f"{theirs}.conv1",
        f"{ours}.first.norm": f"{theirs}.bn1",
        f"{ours}.second.conv": f"{theirs}.conv2",
        f"{ours}.second.norm": f"{theirs}.bn2",
    }


def _pose_names(variant: Variant) -> dict[str, str]:
    names = _backbone_names(variant)
    for s, modules in enumerate(variant.modules):
        branches = s + 2
        for b in range(branches):
            names[f"stages.{s}.entries.{b}.conv"] = f"trans{s + 1}_branch{b + 1}.0"
            names[f"stages.{s}.entries.{b}.norm"] = f"trans{s + 1}_branch{b + 1}.1"
        for m in range(modules):
            ours, theirs = f"stages.{s}.fusions.{m}", f"stage{s + 2}.{m}"
            for b in range(branches):
                for k in range(BLOCKS_PER_BRANCH):
                    names.update(
                        _block_names(f"{ours}.branches.{b}.{k}", f"{theirs}.branches.{b}.{k}")
                    )
            outputs = 1 if branches == 4 and m == modules - 1 else branches
            for to in range(outputs):
                for source in range(branches):
                    way = f"{ours}.fusion.{to}.{source}"
                    other = f"{theirs}.fuse_layers.{to}.{source}"
                    if source > to:
                        names[f"{way}.steps.0.conv"] = f"{other}.0"
                        names[f"{way}.steps.0.norm"] = f"{other}.1"
                    for step in range(to - source):
                        names[f"{way}.steps.{step}.conv"] = f"{other}.{step}.0"
                        names[f"{way}.steps.{step}.norm"] = f"{other}.{step}.1"
    names["head_low"] = "final_layers.0"
    names["enlarge.conv"] = "deconv_layers.0.0.0"
    names["enlarge.norm"] = "deconv_layers.0.0.1"
    for k in range(variant.enlarged_blocks):
        names.update(_block_names(f"enlarge.blocks.{k}", f"deconv_layers.0.{k + 1}.0"))
    names["head_high"] = "final_layers.1"
    return names


def _classifier_names(variant: Variant) -> dict[str, str]:
    last = f"features.{1 + sum(stage.repeats for stage in variant.stages)}"
    return {
        **_backbone_names(variant),
        "head.conv": f"{last}.1",
        "head.norm": f"{last}.2",
        "linear": "classifier.1",
    }


def reference_names(name: str) -> dict[str, str]:
    """Module names in the published code by ours, for every module that holds weights.

    Args:
        name: a variant: ``H0`` .. for the pose network, ``B0`` .. for the classifier.

    Raises:
        EhrnetError: there is no such variant, or it is not of the published code.
    """
    row = _table_row(name)
    if name in RELATED:
        raise EhrnetError(f"{name} is not a network of the published code: see ehrnet get-weights.")
    return _pose_names(row) if name in VARIANTS else _classifier_names(row)


def _match(
    state: Mapping[str, Tensor], name: str, origin: str
) -> tuple[dict[str, str], dict[str, Tensor], dict[str, Tensor]]:
    """Published keys by ours, our tensors without values, and theirs; values are not looked at.

    Raises EhrnetError where keys or shapes do not fit.
    """
    row = _table_row(name)
    names = reference_names(name)
    bias = state.get("classifier.1.bias")
    classes = len(bias) if bias is not None and bias.ndim == 1 else 1000
    with torch.device("meta"):
        ours = build(name, classes=classes).state_dict()
    theirs = {}
    for key in ours:
        module, leaf = key.rsplit(".", 1)
        theirs[key] = f"{names[module]}.{leaf}"
    state = dict(state)
    if name in VARIANTS:
        blocks = sum(stage.repeats for stage in row.stages)
        for key in list(state):
            if key.startswith(("classifier.", f"features.{blocks + 1}.")):
                del state[key]
        for leaf in ("weight", "bias"):
            key = f"final_layers.1.{leaf}"
            if key in state and state[key].shape[:1] == (2 * COCO_17.num_keypoints,):
                state[key] = state[key][: COCO_17.num_keypoints]
    for key in theirs.values():
        if key.endswith(_COUNTER) and key not in state:
            state[key] = torch.zeros((), dtype=torch.int64)
    _compare({theirs[key]: tuple(t.shape) for key, t in ours.items()}, state, origin)
    return theirs, ours, state


def from_reference(state: Mapping[str, Tensor], name: str, origin: str = "it") -> dict[str, Tensor]:
    """Map the published code's state_dict to ours.

    Args:
        state: tensors by the published keys, prefixes removed (``unwrap``). Normalisation counters
            may be missing. For a pose network the classifier's head is ignored, and of a second
            heatmap head with tags (34 channels, as two of the published configurations make it)
            the 17 heatmaps are kept.
        name: variant, ``H0`` .. for the pose network, ``B0`` .. for the classifier.
        origin: where the tensors come from, for the error.

    Returns:
        Float32 tensors for ``build(name).load_state_dict``.

    Raises:
        EhrnetError: a key is missing, unknown or misshapen, or a value is not finite.
    """
    theirs, ours, state = _match(state, name, origin)
    mapped = {}
    for key, template in ours.items():
        value = state[theirs[key]].detach()
        if not _is_plain(value) or value.dtype.is_floating_point != template.is_floating_point():
            raise EhrnetError(
                f"{theirs[key]} in {origin} is not a plain tensor of {template.dtype}, but "
                f"{value.dtype}, {value.layout}: ask its maker for the bare state_dict."
            )
        value = value.to(template.dtype).clone()
        if not torch.isfinite(value).all():
            raise EhrnetError(f"{theirs[key]} in {origin} holds values that are not finite.")
        mapped[key] = value.contiguous()
    return mapped


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor holds each of its values in memory: not sparse, not one value repeated."""
    return (
        value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def read_foreign(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a PyTorch or safetensors file of the published code down to its flat state_dict.

    Only tensors and plain containers are unpickled, by a PyTorch that keeps to that; earlier ones
    read safetensors only. Raises EhrnetError.
    """
    path = Path(path)
    check_source(path)
    content: Any
    if _looks_pickled(path):
        if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SAFE_TORCH:
            raise EhrnetError(
                f"{path} was not opened: a crafted file of its kind can run code in PyTorch "
                f"{torch.__version__}; import it with PyTorch {'.'.join(map(str, _SAFE_TORCH))} or "
                "later, on any machine."
            )
        if _is_program(path):
            raise EhrnetError(
                f"{path} is a TorchScript program, not weights, and was not opened: ask its maker "
                "for the bare state_dict."
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise EhrnetError(
                f"{path} holds more than tensors, or is damaged, and was not opened, since opening "
                "it could run code: ask its maker for the bare state_dict."
            ) from error
        except Exception as error:  # torch raises nearly every kind for damaged files
            # Its first sentence; what follows may advise to let the file run code.
            said = re.sub(r"^\[enforce fail [^]]*\][ .]*", "", f"{error}\n")
            reason = re.split(r"\.\s|\n", said)[0] or type(error).__name__
            raise EhrnetError(
                f"{path} is truncated or damaged ({reason}): fetch it again."
            ) from error
    else:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                if _KEY in (file.metadata() or {}):
                    raise EhrnetError(f"{path} is a checkpoint of ours already: use it as it is.")
                content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise EhrnetError(
                f"{path} is neither a PyTorch nor a safetensors file, or it is damaged ({error})."
            ) from error
    return unwrap(content, str(path))


def _is_program(path: Path) -> bool:
    """Whether this is a network saved as TorchScript."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def unwrap(content: object, origin: str = "it") -> dict[str, Tensor]:
    """Find the tensors in what a file held: flat, or one level down, prefixes removed."""
    for key in ("", "state_dict", "best_state_dict", "model"):
        inner = content.get(key) if key and isinstance(content, Mapping) else content
        if isinstance(inner, Mapping) and inner and all(isinstance(k, str) for k in inner):
            if all(isinstance(value, Tensor) for value in inner.values()):
                return _without_prefixes(dict(inner))
    raise EhrnetError(
        f"no weights found in {origin}: expected tensors by name, directly or under 'state_dict', "
        "'best_state_dict' or 'model'."
    )


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what DataParallel ('module.') and a half-precision wrapper ('1.') put in front."""
    while True:
        for prefix in ("module.", "1."):
            if all(key.startswith(prefix) for key in state):
                state = {key[len(prefix) :]: value for key, value in state.items()}
                break
        else:
            return state


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """Name of the one variant whose published state_dict this is by keys and shapes, or None."""
    names = VARIANTS if any(key.startswith("final_layers.") for key in state) else _BACKBONES
    for name in names:
        try:
            _match(state, name, "it")
        except EhrnetError:
            continue
        return name
    return None


def import_checkpoint(
    file: str | os.PathLike[str],
    variant_name: str | None,
    out: str | os.PathLike[str],
    licence: str = "",
) -> CheckpointMeta:
    """Convert a file of the published code into ours.

    Args:
        file: PyTorch or safetensors file, in any of the known containers.
        variant_name: ``H0`` .. ``H-4`` or ``B0`` .. ``B-4``; None recognises it by the shapes.
        out: target file.
        licence: of the weights, if known. Those published with the paper are CC BY-NC 4.0.

    Returns:
        The description that was written. Its coordinates are ``reference``.

    Raises:
        EhrnetError: unreadable, or any key missing, unknown or misshapen; nothing is written then.
    """
    if Path(out).suffix != ".safetensors":
        raise EhrnetError(f"{out} should end in .safetensors: that is what is written.")
    state = read_foreign(file)
    if variant_name is None:
        variant_name = recognise(state)
        if variant_name is None:
            raise EhrnetError(
                f"{file} fits none of the variants: name one with --variant to see what differs."
            )
    try:
        mapped = from_reference(state, variant_name, str(file))
    except EhrnetError as error:
        other = recognise(state)
        if other is None or other == variant_name:
            raise
        raise EhrnetError(f"{error} They fit {other}: say --variant {other}.") from error
    source = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    meta = CheckpointMeta(
        variant=variant_name,
        skeleton=COCO_17.name if variant_name in VARIANTS else "",
        weights_name=f"imported-{Path(file).name.split('.')[0]}",
        quality="imported",
        coordinates="reference",
        recipe={"imported_from": Path(file).name, "sha256": source},
        licence=licence or "not stated; weights published with the paper are CC BY-NC 4.0",
    )
    return save_checkpoint(out, mapped, meta)
