"""The table of variants, its counts and the command that prints them."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ehrnet_model.errors import EhrnetError
from ehrnet_model.variants import PUBLISHED, VARIANTS, Variant
from ehrnet_ros.cli import variants as verb

# Measured on the reference network: everything but the names.
FACTS = json.loads((Path(__file__).parents[1] / "facts" / "variants.json").read_text())


@pytest.mark.parametrize("name", VARIANTS)
def test_table_is_table_1_as_executed(name):
    variant, facts = VARIANTS[name], FACTS["pose"][name]
    assert variant.input_size == facts["input_size"]
    assert list(variant.tap_channels) == facts["tap_channels"]
    assert list(variant.branch_widths) == facts["branch_widths"]
    assert list(variant.modules) == facts["modules"]
    stages = [[s.kernel, s.stride, s.expand, s.channels, s.repeats] for s in variant.stages]
    assert stages == facts["stages"]
    assert Variant.from_phi(variant.phi) is variant


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_equal_the_reference_to_the_last_digit(name):
    variant, facts = VARIANTS[name], FACTS["pose"][name]
    cost = variant.cost()
    assert (cost.params, cost.macs) == (facts["params"], facts["macs"])
    assert (cost.paper_params, cost.paper_macs) == (facts["paper_params"], facts["paper_macs"])
    parts = {p: [c.params, c.macs, c.paper_macs] for p, c in variant.cost_by_part().items()}
    assert parts == facts["by_part"]


@pytest.mark.parametrize("classes", [1000, 100])
@pytest.mark.parametrize("name", VARIANTS)
def test_classifier_counts_equal_the_reference(name, classes):
    variant = VARIANTS[name]
    facts = FACTS["classifier"][variant.backbone_name]
    assert variant.classifier_size == facts["input_size"]
    assert variant.head_channels == facts["head_channels"]
    cost = variant.classifier_cost(classes)
    assert [cost.params, cost.macs] == facts[f"classes_{classes}"]


@pytest.mark.parametrize("name", VARIANTS)
def test_papers_way_of_counting_gives_what_the_paper_prints(name):
    cost, printed = VARIANTS[name].cost(), PUBLISHED[name]

    def truncated(value):
        return int(value * 10) / 10

    assert f"{truncated(cost.paper_params / 1e6):g}M" == printed.params
    assert f"{truncated(cost.paper_macs / 1e9):g}B" == printed.flops
    paper = FACTS["pose"][name]["paper"]
    assert printed.ap_val == paper["ap_val"]
    assert printed.ap_test_dev == paper["ap_testdev"]
    assert printed.ap_multi_scale == paper["ap_testdev_multiscale"]
    assert printed.fps_xavier_nx == paper["fps_xavier_nx"]


def test_macs_follow_the_area_and_parameters_do_not():
    variant = VARIANTS["H-4"]
    small, large = variant.cost((96, 128)), variant.cost((192, 256))
    assert small.params == large.params
    squeezing = sum(x.cost.macs for x in variant.layers((96, 128)) if x.area == 1)
    assert large.macs - squeezing == 4 * (small.macs - squeezing)


@pytest.mark.parametrize("phi", [1, -5, 5])
def test_phi_outside_the_family_is_an_error(phi):
    with pytest.raises(EhrnetError, match="does not exist"):
        Variant.from_phi(phi)


@pytest.mark.parametrize("size", [(100, 96), (0, 32), (-32, 32)])
def test_size_that_does_not_fit_is_an_error(size):
    with pytest.raises(EhrnetError, match="multiples of 32"):
        VARIANTS["H0"].cost(size)


def _run(capsys, *arguments):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    assert verb.run(parser.parse_args(arguments)) == 0
    return capsys.readouterr().out


def test_command_prints_json_of_all_variants(capsys):
    rows = json.loads(_run(capsys, "--json"))
    assert [row["name"] for row in rows] == ["H0", "H-1", "H-2", "H-3", "H-4"]
    for row in rows:
        facts = FACTS["pose"][row["name"]]
        for key in ("input_size", "params", "macs", "paper_params", "paper_macs"):
            assert row[key] == facts[key] and isinstance(row[key], int)
        assert row["phi"] == int(row["name"][1:])


def test_command_prints_one_variant_as_a_table_with_the_reason(capsys):
    text = _run(capsys, "--phi", "-3")
    assert "5,360,390" in text and "3.759 G" in text and "6,962,372" in text
    assert "H-4" not in text
    assert "twice" in text and "four times too much" in text
    assert max(map(len, text.splitlines())) <= 120


def test_counting_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None\n"
        "from ehrnet_ros.cli.variants import table; print(table([-4])[0]['params'])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "2764706", done.stderr
