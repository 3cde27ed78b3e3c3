"""Where keypoints of one person lie to each other: what keeps two people apart whose tags do not.

``SPANS`` are typical distances in units of that of the shoulders, the same for left and right:
medians over 7,763 people of COCO train2017 and Leeds Sports Pose with 5 or more labelled keypoints,
each divided by the person's own median ratio to the table (tools/keypoint_spans.py makes it).
"""

from __future__ import annotations

from typing import Dict, Sequence

import numpy as np

from ehrnet_model.skeleton import COCO_17

# Of pairs (i, j), j < i, a row for each i.
# fmt: off
_COCO_17 = (
    (),
    (0.17,),
    (0.17, 0.23),
    (0.42, 0.29, 0.50),
    (0.42, 0.50, 0.29, 0.59),
    (0.82, 0.85, 0.96, 0.71, 0.98),
    (0.82, 0.96, 0.85, 0.98, 0.71, 1.00),
    (1.64, 1.71, 1.79, 1.62, 1.80, 0.93, 1.57),
    (1.64, 1.79, 1.71, 1.80, 1.62, 1.57, 0.93, 1.58),
    (1.86, 1.98, 2.01, 1.99, 2.10, 1.44, 1.81, 0.76, 1.60),
    (1.86, 2.01, 1.98, 2.10, 1.99, 1.81, 1.44, 1.60, 0.76, 1.34),
    (2.31, 2.41, 2.43, 2.34, 2.39, 1.70, 1.89, 1.02, 1.45, 1.02, 1.38),
    (2.31, 2.43, 2.41, 2.39, 2.34, 1.89, 1.70, 1.45, 1.02, 1.38, 1.02, 0.67),
    (3.41, 3.52, 3.53, 3.47, 3.51, 2.84, 2.96, 2.08, 2.34, 1.71, 2.01, 1.26, 1.45),
    (3.41, 3.53, 3.52, 3.51, 3.47, 2.96, 2.84, 2.34, 2.08, 2.01, 1.71, 1.45, 1.26, 0.77),
    (4.60, 4.71, 4.71, 4.67, 4.68, 4.01, 4.10, 3.25, 3.41, 2.89, 3.07, 2.39, 2.51, 1.28, 1.51),
    (4.60, 4.71, 4.71, 4.68, 4.67, 4.10, 4.01, 3.41, 3.25, 3.07, 2.89, 2.51, 2.39, 1.51, 1.28, 0.87),  # noqa: E501
)
# fmt: on


def _square(rows: Sequence[Sequence[float]]) -> np.ndarray:
    table = np.ones((len(rows), len(rows)), np.float32)
    for i, row in enumerate(rows):
        table[i, :i] = table[:i, i] = row
    return table


SPANS: Dict[str, np.ndarray] = {COCO_17.name: _square(_COCO_17)}
"""By name of the skeleton, (J, J) float32; 1 on the diagonal, which means nothing."""
