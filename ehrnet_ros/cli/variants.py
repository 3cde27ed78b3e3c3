"""``ehrnet variants``: the family with its true cost and the paper's."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "the five networks: input, widths, parameters and MACs, counted and as the paper prints them"

REASON = """\
The paper's columns come from a counting helper with two errors: it adds up the parameters of every
MBConv block twice, with the block and with the convolutions inside it, and it charges a transposed
convolution for its output area, four times too much at stride 2. Counted that way our networks give
the paper's ten numbers (it truncates them); the true columns count every parameter and operation
once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("--phi", type=int, help="only this one: 0, -1, -2, -3 or -4")
    parser.add_argument("--json", action="store_true", help="a list of objects on stdout")


def table(phis: list[int]) -> list[dict[str, Any]]:
    """One JSON-ready object per variant; every count is computed here, from the table."""
    from ehrnet_model.variants import PUBLISHED, Variant

    rows = []
    for phi in phis:
        variant = Variant.from_phi(phi)
        cost = variant.cost()
        printed = PUBLISHED[variant.name]
        rows.append(
            {
                "name": variant.name,
                "phi": phi,
                "input_size": variant.input_size,
                "params": cost.params,
                "macs": cost.macs,
                "paper_params": cost.paper_params,
                "paper_macs": cost.paper_macs,
                "paper_printed": {"params": printed.params, "flops": printed.flops},
                "paper_ap_val": printed.ap_val,
                "backbone": variant.backbone_name,
                "branch_widths": list(variant.branch_widths),
                "modules": list(variant.modules),
                "tap_channels": list(variant.tap_channels),
                "parts": {
                    part: {"params": share.params, "macs": share.macs}
                    for part, share in variant.cost_by_part().items()
                },
                "classifier": {
                    "input_size": variant.classifier_size,
                    "params_1000_classes": variant.classifier_cost(1000).params,
                    "macs_1000_classes": variant.classifier_cost(1000).macs,
                },
            }
        )
    return rows


def run(args: argparse.Namespace) -> int:
    """Print the table. Raises EhrnetError for a phi outside the family."""
    rows = table([0, -1, -2, -3, -4] if args.phi is None else [args.phi])
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    line = "{:<5}{:>5}  {:<9}{:<15}{:<8}{:>11}{:>11}  {:>11} {:>7}{:>10} {:>7}{:>8}"
    print(line.format(*[""] * 5, "true", "true", "paper's way", "", "", "", "paper"))
    print(
        line.format(
            *("", "input", "backbone", "widths", "modules", "params", "MACs"),
            *("params", "", "MACs", "", "AP val"),
        )
    )
    for row in rows:
        printed = row["paper_printed"]
        print(
            line.format(
                row["name"],
                row["input_size"],
                row["backbone"],
                " ".join(map(str, row["branch_widths"])),
                " ".join(map(str, row["modules"])),
                f"{row['params']:,}",
                f"{row['macs'] / 1e9:.3f} G",
                f"{row['paper_params']:,}",
                f"({printed['params']})",
                f"{row['paper_macs'] / 1e9:.3f} G",
                f"({printed['flops']})",
                row["paper_ap_val"],
            )
        )
    print()
    print("MACs: multiply-accumulates of the convolutions for one square image of the input size.")
    print("In brackets and AP val: what the paper prints.")
    print(REASON)
    return 0
