"""Prints the table of ehrnet_model/inference/anatomy.py.

python tools/keypoint_spans.py person_keypoints_train2017.json[.gz]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ehrnet_model.evaluation.coco import load_annotations
from ehrnet_model.held_back import held_back
from ehrnet_model.skeleton import COCO_17

_ROUNDS = 6


def spans(keypoints: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """(J, J) typical distances of (P, J, 3) labelled keypoints, shoulders 1 apart."""
    seen = keypoints[..., 2] > 0
    distance = np.linalg.norm(keypoints[:, :, None, :2] - keypoints[:, None, :, :2], axis=-1)
    distance = np.where(seen[:, :, None] & seen[:, None], distance, np.nan)
    place = np.where(seen[..., None], keypoints[..., :2], np.nan)
    sides = np.nanmax(place, 1) - np.nanmin(place, 1)
    size = np.sqrt(np.maximum(sides.prod(-1), 1))
    for _ in range(_ROUNDS):
        table = np.nanmedian(distance / size[:, None, None], axis=0)
        np.fill_diagonal(table, np.nan)
        size = np.nanmedian((distance / table).reshape(len(keypoints), -1), axis=1)
    table = (table + table[np.ix_(flip, flip)]) / 2
    return np.asarray(table / table[5, 6])


def main() -> None:
    """Reads, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("annotations", type=Path)
    annotations = load_annotations(parser.parse_args().annotations)["annotations"]
    people = [
        np.array(a["keypoints"], float).reshape(-1, 3)
        for a in annotations
        if a.get("num_keypoints", 0) >= 5
        and not a.get("iscrowd")
        and not held_back(a["image_id"], 0.03)
    ]
    table = spans(np.stack(people), np.array(COCO_17.flip))
    print(f"# {len(people)} people")
    for i, row in enumerate(table):
        print("    (" + ", ".join(f"{value:.2f}" for value in row[:i]) + "),")


if __name__ == "__main__":
    main()
