"""The optimiser against linear algebra and PyTorch's own Muon and AdamW."""

import numpy as np
import pytest
import torch

from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.training.muon import Muon, kernels_for_muon, orthogonalise
from ehrnet_model.variants import Variant


@pytest.mark.parametrize("shape", [(14, 126), (126, 14), (54, 54), (107, 1944), (1, 9)])
def test_singular_vectors_stay_and_values_come_near_one(shape):
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    values = np.geomspace(1, 1e-2, min(shape))
    matrices = torch.tensor(np.stack([(u * values) @ v, (u * -values[::-1]) @ v]))
    made = orthogonalise(matrices.float()).numpy()
    for matrix, sign in zip(made, (1, -1), strict=True):
        core = u.T @ matrix @ v.T  # diagonal where the singular vectors are the same
        assert np.abs(core - np.diag(np.diag(core))).max() < 2e-3
        assert ((sign * np.diag(core) > 0.4) & (sign * np.diag(core) < 1.3)).all()
        assert np.abs(u @ core @ v - matrix).max() < 2e-3


def test_zeros_stay_zeros():
    assert (orthogonalise(torch.zeros(2, 3, 5)) == 0).all()


def test_steps_are_those_of_pytorch():
    torch.manual_seed(0)
    start = torch.randn(8, 6, 3, 3)
    ours = torch.nn.Parameter(start.clone().contiguous(memory_format=torch.channels_last))
    theirs = torch.nn.Parameter(start.flatten(1).clone())
    options = {"lr": 0.02, "weight_decay": 0.1}
    optimiser = Muon([{"params": [ours], "weight_decay": 0.1, "orthogonal": True}], lr=0.02)
    reference = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(4):
        gradient = torch.randn(8, 6, 3, 3)
        ours.grad = gradient.clone().contiguous(memory_format=torch.channels_last)
        theirs.grad = gradient.flatten(1).clone()
        optimiser.step()
        reference.step()
    moved = float((theirs - start.flatten(1)).detach().abs().max())
    difference = float((ours.flatten(1) - theirs).detach().abs().max())
    assert difference < 0.03 * moved  # theirs iterates in bfloat16


def test_what_is_not_orthogonal_is_adamw():
    torch.manual_seed(0)
    start, options = torch.randn(5), {"lr": 0.02}
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimiser = Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.02)
    reference = torch.optim.AdamW([theirs], weight_decay=0.1, **options)
    for _ in range(4):
        ours.grad = torch.randn(5)
        theirs.grad = ours.grad.clone()
        optimiser.step()
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_depthwise_kernels_last_layers_and_vectors_are_left_to_adamw():
    network = EfficientHRNet(Variant.from_phi(-4))
    kernels = kernels_for_muon(network, (network.head_low, network.head_high))
    names = {id(p): name for name, p in network.named_parameters()}
    chosen = {names[id(p)] for p in kernels}
    assert all(p.ndim == 4 and p.shape[1] > 1 for p in kernels)
    left = {n for n, p in network.named_parameters() if p.ndim == 4} - chosen
    assert all("depthwise" in n or n.startswith(("head_low", "head_high")) for n in left)
    share = sum(p.numel() for p in kernels) / sum(p.numel() for p in network.parameters())
    assert share > 0.9
