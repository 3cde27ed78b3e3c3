"""Weights that others publish, may be used by anybody, and fit a network of ours: where they are.

What is fetched is checked against the publisher's own sizes and hashes, written down here; nothing
of it is part of this package. Turning the files into a model is network/omz.py's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Sequence, Tuple

from ehrnet_model.download import NoConnection, RemoteFile, fault, proxy_of
from ehrnet_model.errors import EhrnetError

_OMZ = "https://storage.openvinotoolkit.org/repositories/open_model_zoo/2023.0/models_bin/1"


@dataclass(frozen=True)
class Published:
    """A network of the Open Model Zoo: one set of weights, and graphs that use it.

    Attributes:
        phi: of the variant of ours that it is.
        weights: the .bin.
        graphs: .xml files of the same network at different input sizes; the first is fetched.
        source: where it comes from, for people.
        licence: of the weights.
    """

    phi: int
    weights: RemoteFile
    graphs: Tuple[RemoteFile, ...]
    source: str
    licence: str

    @property
    def files(self) -> Tuple[RemoteFile, RemoteFile]:
        """What is fetched: a graph, the weights."""
        return self.graphs[0], self.weights


def _graph(number: str, size: int, sha384: str) -> RemoteFile:
    name = f"human-pose-estimation-{number}"
    return RemoteFile(f"{_OMZ}/{name}/FP32/{name}.xml", size, sha384)


PUBLISHED: Dict[int, Published] = {
    -2: Published(
        phi=-2,
        weights=RemoteFile(
            f"{_OMZ}/human-pose-estimation-0007/FP32/human-pose-estimation-0007.bin",
            32601720,
            "5711b763909990db35f20ce3dc82710001d030ea600ae81b"
            "8187d908d9f751ded6dd9bdbbdc2182225dc79cac92ffb1d",
        ),
        graphs=(
            _graph(
                "0007",
                850306,
                "52b32d13c47ce42db642283128b439ee9eadcc68c8bd32e8"
                "edcc574c849b3cde702cf0ee033378b37dd9671e236842ff",
            ),
            _graph(
                "0006",
                849656,
                "ac3fd1607f5e25e3eda336a55f2e0931473bfca9a8118245"
                "5018af0df200e3ee9a95834bafaba784b2f13a96e075340e",
            ),
            _graph(
                "0005",
                849150,
                "b0735a220aff32a5c885b0b2e311b8dae21584edf0635624"
                "6c7ad0634fb8b3a2ddf488097b5288252025dee487d029f0",
            ),
        ),
        source="human-pose-estimation-0005/6/7 of Intel's Open Model Zoo, release 2023.0, FP32",
        licence="Apache-2.0",
    )
}


def published_phis() -> Tuple[int, ...]:
    """Variants for which somebody publishes such weights."""
    return tuple(PUBLISHED)


def published(phi: int) -> Published:
    """What there is for a variant. Raises EhrnetError where there is nothing."""
    if phi not in PUBLISHED:
        have = ", ".join(str(p) for p in PUBLISHED)
        raise EhrnetError(
            f"nobody publishes weights for phi {phi} that everybody may use: there are some for "
            f"phi {have}; the others are trained (`ehrnet train`) or imported (`ehrnet "
            "import-checkpoint`)."
        )
    return PUBLISHED[phi]


def cache_folder() -> Path:
    """Where downloads lie until they were used: ``$XDG_CACHE_HOME/ehrnet``.

    Raises EhrnetError where the variable is not set and the user has no home.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:
        raise EhrnetError("this user has no home folder: set XDG_CACHE_HOME or HOME.") from None
    return Path(base) / "ehrnet"


def recognise(paths: Sequence[Path], what: Published) -> Tuple[Path, Path]:
    """Graph and weights among files that were brought, whatever their names.

    Raises:
        EhrnetError: a file is missing, or is none of the published ones; says which.
    """
    found: Dict[str, Path] = {}
    for path in paths:
        if not os.path.isfile(path):
            raise EhrnetError(f"there is no file {path}: check the path.")
        kind = _kind(path, what)
        found[kind] = path
    for kind, file in zip(("graph", "weights"), what.files):
        if kind not in found:
            raise EhrnetError(f"{file.name} is missing: bring it too, from {file.url}.")
    return found["graph"], found["weights"]


def _kind(path: Path, what: Published) -> str:
    reasons = {}
    for kind, files in (("weights", (what.weights,)), ("graph", what.graphs)):
        for file in files:
            reason = fault(path, file)
            if not reason:
                return kind
            reasons[file.name] = reason
    near = what.weights if path.stat().st_size > 1 << 22 else what.files[0]
    raise EhrnetError(
        f"{path} is none of the published files ({reasons[near.name]}, compared with {near.name}): "
        f"bring {near.url} whole and unchanged."
    )


def how_to_bring(error: NoConnection, what: Published) -> EhrnetError:
    """The same error with what to do on a machine without internet."""
    names = " ".join(file.name for file in what.files)
    addresses = "\n  ".join(file.url for file in what.files)
    proxy = "Check https_proxy" if proxy_of(what.weights.url) else "Behind a proxy, set https_proxy"
    return EhrnetError(
        f"{error}\n{proxy}. Without internet, fetch these two elsewhere:\n"
        f"  {addresses}\nand bring them here: `ehrnet get-weights --phi {what.phi} --from {names}`."
    )
