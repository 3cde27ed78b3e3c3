"""Writes the generated sections of the documents; with --check only says whether they are current.

python tools/readme.py [--check]
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def parameters() -> str:
    """The node's parameters, from their declaration."""
    from ehrnet_ros.parameters import parameters_table

    return parameters_table().strip()


def variants() -> str:
    """What `ehrnet variants` prints."""
    from ehrnet_ros.cli import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main(["variants"])
    table = text.getvalue().split("\n\nMACs:")[0].strip("\n")
    return f"```\n{table}\n```"


def weights() -> str:
    """What the shipped weights reach, from the evaluations of their cards."""
    from ehrnet_model.inference.decode import DecodeOptions
    from ehrnet_model.inference.runtime import model_info

    lines = [
        "| weights | input | GMACs | AP as shipped | keypoints' precision | recall "
        "| AP with the options for AP | images of val2017 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted((README.parent / "ehrnet_model" / "data").glob("*.evaluations.json")):
        info = model_info(path.with_name(path.name.replace("evaluations.json", "onnx")))
        stored = DecodeOptions.from_dict(info.decode)
        ap = {}
        for row in json.loads(path.read_text()):
            mine = row["weights_sha256"] == info.weights_sha256 and row["precision"] == "fp32"
            if mine and row.get("size") == "best":
                ap[DecodeOptions.from_dict(row["decode"]) == stored] = row
        if set(ap) != {True, False}:
            raise SystemExit(f"{path} lacks AP as shipped or for AP: run tools/model_card.py.")
        row = ap[True]
        lines.append(
            f"| {info.variant} ({info.weights_name}) | short side {row['short_side']} | "
            f"{row['gmacs']:.2f} | **{row['AP']:.3f}** | {row['keypoint_precision']:.2f} | "
            f"{row['keypoint_recall']:.2f} | {ap[False]['AP']:.3f} | {row['images']} |"
        )
    return "\n".join(lines)


def speed() -> str:
    """The main figures of the last `python -m benchmarks`."""
    report = json.loads((README.parent / "docs" / "speed.json").read_text())
    where, rows = report["machine"], report["results"]
    lines = [
        f"{report['date']}, {where['processor']}, {where['cores']} virtual cores, load "
        f"{where['load']}. Milliseconds are medians; more in [docs/speed.md](docs/speed.md). The "
        "images are noise, in which nobody is found, so this is the first look and the coarse one; "
        "everybody who is looked at again, up to 8 an image, adds the time in the last column, "
        "measured in a photograph.",
        "",
        "| model | camera | input | network | everything else | share of the network | frames/s | "
        "each person |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows["stages"]:
        network = float(row["engine"].split(" /")[0])
        rest = float(row["callback"].split(" /")[0]) - network
        lines.append(
            f"| {row['model']}, {row['runtime']} | {row['camera']} | {row['input']} | "
            f"{network:.1f} ms | {rest:.2f} ms | {row['rest / engine']} | {row['frames/s']} | "
            f"{row['each person']} ms |"
        )
    lines += ["", "| the node as a process | poses/s | first pose | age p95 | memory |"]
    lines.append("|---|---|---|---|---|")
    for row in rows["node"]:
        lines.append(
            f"| {row['camera']}, input {row['input']}, {row['poses']} images | {row['poses/s']} | "
            f"{row['first pose s']} s | {row['age p95_ms']} ms | {row['memory MB']} MB, at the end "
            f"{row['at the end MB']} MB |"
        )
    return "\n".join(lines)


SECTIONS = {
    README: {"variants": variants, "weights": weights, "speed": speed},
    README.parent / "docs" / "parameters.md": {"parameters": parameters},
}


def filled(file: Path) -> str:
    """The text of a document with its generated sections as they should be."""
    text = file.read_text()
    for name, make in SECTIONS[file].items():
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        found = list(re.finditer(pattern, text, flags=re.S))
        if len(found) != 1:
            raise SystemExit(f"{file} has {len(found)} sections '{name}', expected one.")
        start, end = found[0].span()
        text = f"{text[:start]}{make()}\n{text[end:]}"
    return text


def main() -> int:
    """Checks or writes."""
    check = "--check" in sys.argv[1:]
    stale = [file for file in SECTIONS if filled(file) != file.read_text()]
    for file in stale:
        if check:
            print(f"{file.name} is not current: run `python tools/readme.py`.", file=sys.stderr)
        else:
            file.write_text(filled(file))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
