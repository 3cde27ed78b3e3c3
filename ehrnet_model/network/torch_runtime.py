"""Runtime on PyTorch: evaluation without an export, and the truth other engines are held to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import ehrnet_model
from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.runtime import (
    ModelInfo,
    check_images,
    check_peaks,
    check_size,
)
from ehrnet_model.network.checkpoint import load_network, weights_sha256
from ehrnet_model.network.deploy import DeployedNetwork
from ehrnet_model.skeleton import SKELETONS
from ehrnet_model.variants import pose_variant


class TorchRuntime:
    """A network in memory, with the same head and tail as the exported graph.

    Args:
        network: gives (lowres, highres), see DeployedNetwork; it is put into evaluation mode.
        info: what the network is.
        size_hw: pins height and width (multiples of 32), or None for any.
        threads: CPU threads. They are the process's, as torch has it; None leaves them alone.
        device: where it runs, e.g. ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        network: nn.Module,
        info: ModelInfo,
        size_hw: tuple[int, int] | None = None,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.name = "torch" if device == "cpu" else f"torch {device}"
        self.info = info
        self.size_hw = None if size_hw is None else check_size(size_hw)
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = device
        self._deployed: DeployedNetwork | None = (
            DeployedNetwork(network, info.coordinates, info.skeleton.num_keypoints, info.smooth)
            .eval()
            .to(device)
        )

    @classmethod
    def from_file(
        cls, weights: Path, size_hw: tuple[int, int] | None = None, threads: int | None = None
    ) -> TorchRuntime:
        """Of a checkpoint (``.safetensors``). Raises EhrnetError if it is not one of ours."""
        if Path(weights).suffix in (".onnx", ".engine"):
            raise EhrnetError(
                f"runtime torch takes weights (.safetensors), not {weights}: give it the "
                "checkpoint the file was exported from, or use runtime onnxruntime."
            )
        network, info = load_weights(Path(weights))
        return cls(network, info, size_hw, threads)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) BGR -> float32 (N, J, 30, 15). Raises EhrnetError if it cannot."""
        images = check_images(images, self.size_hw)
        if self._deployed is None:
            raise EhrnetError("this torch runtime was closed: open the model again.")
        with torch.inference_mode():
            peaks = self._deployed(torch.from_numpy(images).to(self._device)).cpu().numpy()
        return check_peaks(peaks, len(images), self.info, self.name)

    def close(self) -> None:
        """Lets go of the network."""
        self._deployed = None


def load_weights(weights: Path) -> tuple[nn.Module, ModelInfo]:
    """Network and description of a checkpoint, ready for export or for TorchRuntime.

    Raises:
        EhrnetError: missing or damaged file, or not a pose network of ours.
    """
    network, meta = load_network(weights)
    extra = {"metrics": meta.metrics, "recipe": meta.recipe, "licence": meta.licence}
    info = ModelInfo(
        variant=meta.variant,
        phi=meta.phi,
        skeleton=SKELETONS[meta.skeleton],
        weights_sha256=meta.weights_sha256,
        weights_name=meta.weights_name,
        quality=meta.quality,
        coordinates=meta.coordinates,
        smooth=float(meta.smooth),
        decode=dict(meta.decode),
        input_size=meta.input_size or pose_variant(meta.variant).input_size,
        version=ehrnet_model.__version__,
        extra={key: value for key, value in extra.items() if value},
    )
    return network, info


def random_network(phi: int, seed: int = 0) -> tuple[nn.Module, ModelInfo]:
    """Untrained weights, for tests and timing. Raises EhrnetError for a phi that does not exist."""
    from ehrnet_model.network.efficienthrnet import EfficientHRNet
    from ehrnet_model.variants import Variant

    variant = Variant.from_phi(phi)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EfficientHRNet(variant).eval()
    info = ModelInfo(
        variant=variant.name,
        phi=phi,
        weights_name=f"random-{seed}",
        quality="random",
        input_size=variant.input_size,
    )
    return network, replace(info, weights_sha256=weights_sha256(network.state_dict()))
