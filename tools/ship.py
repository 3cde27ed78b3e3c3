"""From weights with chosen options to the shipped files: graph, answers, evaluations and card.

python tools/ship.py WEIGHTS.safetensors --tuned T.json --val A.json.gz IMAGES
    --plus B.json.gz IMAGES --work DIR [--calibrate FOLDER] [--note TEXT]

``--val``: images of COCO val2017, some of them person-free; ``--plus``: more of them, at another
size. What is measured, and in which words, is below; files of an earlier call that are in DIR are
made anew. The graphs of lower precision are measured, not shipped; ``--calibrate``: pictures for
INT8, else the demo's photographs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from demo_video import PHOTOS

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "ehrnet_model" / "data"
EHRNET = Path(sys.executable).with_name("ehrnet")
PRECISIONS = ("fp32", "fp16", "int8")
SIZES = ("16:9", "4:3", "square")


class Measured(NamedTuple):
    """One row of the card.

    Attributes:
        name: as it is called there.
        plus: on the other images.
        precision: of the graph.
        for_ap: with the options for AP.
        decode: other options.
    """

    name: str
    plus: bool = False
    precision: str = "fp32"
    for_ap: bool = False
    decode: tuple[str, ...] = ()


def rows(val: int, plus: int) -> list[Measured]:
    """What is measured on so many images."""
    return [
        Measured(f"{val} of COCO val2017, for AP", for_ap=True),
        Measured("the same, as shipped"),
        Measured("the same, as shipped, fp16 graph", precision="fp16"),
        Measured("the same, as shipped, int8 graph", precision="int8"),
        Measured(f"{plus} at 512 pixels, for AP", plus=True, for_ap=True),
        Measured(f"the same {plus}, as shipped", plus=True),
        Measured(f"the same {plus}, as shipped, fp16 graph", precision="fp16", plus=True),
        Measured(f"the same {plus}, as shipped, int8 graph", precision="int8", plus=True),
        Measured(
            f"the first {val}, for AP, one view", decode=("second_look_views=1",), for_ap=True
        ),
        Measured(f"the first {val}, for AP, one look", decode=("second_look=0",), for_ap=True),
    ]


def run(*words: str | Path) -> None:
    """One verb of ``ehrnet`` on one core. Raises EhrnetError where it fails."""
    command = [str(EHRNET), *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise EhrnetError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")


def main() -> int:
    """0 when the files are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--tuned", type=Path, required=True)
    parser.add_argument("--val", nargs=2, required=True, metavar=("JSON", "IMAGES"))
    parser.add_argument("--plus", nargs=2, required=True, metavar=("JSON", "IMAGES"))
    parser.add_argument("--work", type=Path, required=True, help="folder for what is not shipped")
    parser.add_argument("--calibrate", type=Path, default=PHOTOS, metavar="FOLDER")
    parser.add_argument("--note", default="", help="a sentence for the card")
    args = parser.parse_args()
    try:
        ship(args)
    except EhrnetError as error:
        print(f"ship: {error}", file=sys.stderr)
        return 2
    return 0


def ship(args: argparse.Namespace) -> None:
    """Exports, measures, writes the card, and puts all in its place."""
    from ehrnet_model.evaluation.coco import load_annotations

    name = load_checkpoint(args.weights)[1].variant
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    models = {p: work / (f"{name}.onnx" if p == "fp32" else f"{name}.{p}.onnx") for p in PRECISIONS}
    for precision, model in models.items():
        pictures = args.calibrate if precision == "int8" else PHOTOS
        how = ("--precision", precision, "--images", pictures, "-o", model)
        run("export", "--weights", args.weights, *how)
    counts = [len(load_annotations(Path(where))["images"]) for where, _ in (args.val, args.plus)]
    measured = rows(counts[0], counts[1])
    jobs = []
    for number, row in enumerate(measured):
        annotations, images = args.plus if row.plus else args.val
        words = ["evaluate", "--annotations", annotations, "--images", images]
        words += ["--model", models[row.precision], "--json", work / f"{number}.json"]
        words += ["--tuned", args.tuned] if row.for_ap else []
        jobs.append([*words, *(("--decode", *row.decode) if row.decode else ())])
    sizes = []
    for precision in ("fp16", "fp32"):
        for size in SIZES:
            sizes.append(work / f"{precision}.{size.replace(':', 'x')}.json")
            words = ["evaluate", "--annotations", args.val[0], "--images", args.val[1]]
            words += ["--model", models[precision], "--size", size, "--json", sizes[-1]]
            jobs.append(words)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda words: run(*words), jobs))
    for file in (models["fp32"], models["fp32"].with_suffix(".answers.npz")):
        shutil.copy(file, DATA)
    shutil.copy(args.weights, DATA / f"{name}.safetensors")
    card = [sys.executable, str(ROOT / "tools" / "model_card.py"), str(DATA / f"{name}.onnx")]
    card += ["--evaluations", *(str(work / f"{number}.json") for number in range(len(measured)))]
    card += ["--names", *(row.name for row in measured), "--tuned", str(args.tuned)]
    card += ["--sizes", *map(str, sizes), "--note", args.note, "-o", str(DATA / f"{name}.md")]
    subprocess.run(card, check=True)


if __name__ == "__main__":
    sys.exit(main())
