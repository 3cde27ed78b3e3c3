"""The table's counts and a recount on the modules agree."""

import pytest

torch = pytest.importorskip("torch", reason="the network needs torch")

from complexity import count  # noqa: E402

from ehrnet_model.network.checkpoint import build  # noqa: E402
from ehrnet_model.variants import RELATED, VARIANTS, pose_variant  # noqa: E402


@pytest.mark.parametrize("name", [*VARIANTS, *RELATED])
def test_recount_on_the_modules(name):
    variant = pose_variant(name)
    with torch.device("meta"):
        network = build(name)
    size = (variant.input_size, variant.input_size)
    assert count(network, size) == variant.cost(size)


@pytest.mark.parametrize("classes", [1000, 100])
@pytest.mark.parametrize("name", VARIANTS)
def test_recount_on_the_classifiers(name, classes):
    variant = VARIANTS[name]
    with torch.device("meta"):
        network = build(variant.backbone_name, classes=classes)
    side = variant.classifier_size
    counted, expected = count(network, (side, side)), variant.classifier_cost(classes)
    assert (counted.params, counted.macs) == (expected.params, expected.macs)


def test_recount_at_another_size():
    assert count(build("H-4"), (64, 96)) == VARIANTS["H-4"].cost((64, 96))


def test_counting_leaves_the_network_alone():
    network = build("H-4").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    count(network, (64, 64))
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
