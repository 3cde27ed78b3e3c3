"""The networks compute what the published ones compute.

Golden numbers: float64 runs of the reference network with weights made by the rule in conftest.py.
The reference's own float32 error is below 3.5e-6 of an output's deviation; a normalisation
constant or a padding that is off by one moves samples by 1e-2 or more.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network needs torch")

from ehrnet_model.network.checkpoint import build, from_reference  # noqa: E402
from ehrnet_model.variants import VARIANTS  # noqa: E402

CLASSIFIERS = [variant.backbone_name for variant in VARIANTS.values()]


@pytest.fixture(scope="module")
def network(reference_state):
    """The network of a variant with the golden weights, in evaluation mode."""

    def make(name):
        net = build(name)
        net.load_state_dict(from_reference(reference_state(name), name), strict=True)
        return net.eval()

    return make


def _outputs(net, x):
    """Both outputs and every intermediate map that golden values exist for."""
    found = {}

    def keep(module, name):
        module.register_forward_hook(lambda m, i, out: found.__setitem__(name, out))

    keep(net.backbone, "taps")
    for s, stage in enumerate(net.stages):
        keep(stage, f"stage{s + 2}")
    keep(net.stages[0].entries[0], "trans1_branch1")
    keep(net.stages[1].entries[2], "trans2_branch3")
    keep(net.stages[2].entries[3], "trans3_branch4")
    keep(net.enlarge, "deconv")
    with torch.no_grad():
        found["lowres"], found["highres"] = net(x)
    for index, tap in enumerate(found.pop("taps")):
        found[f"x{index + 1}"] = tap
    for s in (2, 3, 4):
        for index, out in enumerate(found.pop(f"stage{s}")):
            found[f"stage{s}.out{index}"] = out
    return found


def _check(tensor, expected, tolerance, sample, name):
    assert list(tensor.shape) == expected["shape"], name
    got = sample(tensor, name, len(expected["value"]))
    assert np.abs(got - expected["value"]).max() <= tolerance * expected["std"], name
    assert float(tensor.double().mean()) == pytest.approx(
        expected["mean"], abs=tolerance * expected["std"]
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_pose_network_equals_reference(name, network, facts, golden_input, sample):
    case = facts("golden_pose.json.gz")[name]["small"]
    net, x = network(name), golden_input(*case["size_hw"])
    assert len(x) and x.shape[2] != x.shape[3]
    with torch.no_grad():
        for out, key in zip(net(x), ("lowres", "highres"), strict=True):
            _check(out, case["outputs"][key], 2e-5, sample, f"{name}:small:{key}")
    found = _outputs(net.double(), x.double())
    expected = {**case["intermediate"], **case["outputs"]}
    assert len(expected) == 16
    for key, numbers in expected.items():
        _check(found[key], numbers, 1e-9, sample, f"{name}:small:{key}")


@pytest.mark.parametrize("name", ["H-3"])  # 13 cells at 1/32: an odd size
def test_pose_network_equals_reference_at_the_papers_size(
    name, network, facts, golden_input, sample
):
    case = facts("golden_pose.json.gz")[name]["paper"]
    with torch.no_grad():
        outputs = network(name)(golden_input(*case["size_hw"]))
    for out, key in zip(outputs, ("lowres", "highres"), strict=True):
        _check(out, case["outputs"][key], 2e-5, sample, f"{name}:paper:{key}")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_equals_reference(name, reference_state, facts, golden_input, sample):
    state = reference_state(name)
    size = facts("golden_classifiers.json.gz")[f"{name}/1000"]["size"]
    x = golden_input(size, size)
    for classes in (1000, 100):
        if classes == 100:
            state.update(reference_state(name, classes, only="classifier."))
        net = build(name, classes=classes)
        net.load_state_dict(from_reference(state, name), strict=True)
        expected = facts("golden_classifiers.json.gz")[f"{name}/{classes}"]
        assert net.variant.classifier_size == expected["size"]
        with torch.no_grad():
            single, exact = net.eval()(x), net.double()(x.double())
        assert exact.shape == (1, classes)
        for logits, tolerance in ((exact, 1e-9), (single, 2e-5)):
            got = sample(logits, f"{name}:{classes}:logits", len(expected["value"]))
            assert np.abs(got - expected["value"]).max() <= tolerance * expected["std"]


def test_golden_gate_notices_another_normalisation_constant(network, facts, golden_input, sample):
    case = facts("golden_pose.json.gz")["H-4"]["small"]
    net = network("H-4")
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    with torch.no_grad():
        lowres = net(golden_input(*case["size_hw"]))[0]
    with pytest.raises(AssertionError):
        _check(lowres, case["outputs"]["lowres"], 2e-5, sample, "H-4:small:lowres")
