"""What a picture teaches: people, and the places where it must not teach anything.

A data set says who is labelled; a teacher (another network) may say who else is there. This module
merges the two into one record per image. Boxes are x, y, width, height in pixels of the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ehrnet_model.skeleton import COCO_17

POSITIVE, ABSENT, WEAK = 1, 0, -1
"""States of a keypoint: draw a peak, draw nothing, give no loss near it."""
INSIDE = 0.7
"""A weak person of whose box more than this share lies within a known person's is part of them."""


@dataclass(frozen=True)
class TeacherRule:
    """How far a teacher's labels are trusted.

    A teacher says ears and eyes are there which people did not label, since they are not seen: of
    those above 0.4 people labelled 0.59 and 0.72, of noses 0.83. Above the thresholds here it is
    0.89 of ears, 0.90 of eyes and of noses, and of each other joint 0.90 to 0.97.

    Attributes:
        person: people above this score are taken as labelled.
        weak_person: between this and ``person`` the box of the person gives no loss.
        keypoint: keypoints above these scores, in the order of COCO-17, are positive.
        weak_keypoint: between this and ``keypoint`` a disc around the keypoint gives no loss.
    """

    person: float = 0.2
    weak_person: float = 0.05
    keypoint: tuple[float, ...] = (0.6, 0.8, 0.8, 0.9, 0.9, *(0.4,) * 12)
    weak_keypoint: float = 0.1


@dataclass
class ImageLabels:
    """Labels of one image.

    Attributes:
        keypoints: (P, 17, 3) float32: x, y and POSITIVE, ABSENT or WEAK.
        boxes: (P, 4) float32.
        areas: (P,) float32, pixels squared (segment area where the data set has one).
        human: (P,) bool, labelled by people and not by a teacher.
        ignore: (B, 4) float32 boxes without loss: crowds, people without keypoints.
        unlabelled_channels: keypoint indices this image says nothing about.
        only_near_people: other, unlabelled people may be there; loss only near the labelled ones.
    """

    keypoints: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    human: np.ndarray
    ignore: np.ndarray
    unlabelled_channels: list[int] = field(default_factory=list)
    only_near_people: bool = False

    def within(self, part: tuple[int, int, int, int]) -> ImageLabels:
        """The labels of an image of which only a part is used, in the same pixels.

        Keypoints beyond are absent, people's boxes end there.

        Args:
            part: left, top, right and bottom, the last two exclusive.
        """
        low, high = np.array(part[:2], np.float32), np.array(part[2:], np.float32)
        keypoints = self.keypoints.copy()
        beyond = (keypoints[..., :2] < low) | (keypoints[..., :2] > high - 1)
        keypoints[..., 2][beyond.any(-1)] = ABSENT
        first = np.clip(self.boxes[:, :2], low, high)
        last = np.clip(self.boxes[:, :2] + self.boxes[:, 2:], low, high)
        return replace(self, keypoints=keypoints, boxes=np.concatenate([first, last - first], 1))

    def to_json(self) -> dict[str, Any]:
        """Plain lists, coordinates rounded to a hundredth of a pixel."""
        return {
            "keypoints": np.round(self.keypoints.reshape(-1, 51).astype(float), 2).tolist(),
            "boxes": np.round(self.boxes.astype(float), 2).tolist(),
            "areas": np.round(self.areas.astype(float), 1).tolist(),
            "human": [bool(h) for h in self.human],
            "ignore": np.round(self.ignore.astype(float), 2).tolist(),
            "unlabelled_channels": list(self.unlabelled_channels),
            "only_near_people": self.only_near_people,
        }

    @staticmethod
    def from_json(record: dict[str, Any]) -> ImageLabels:
        """The inverse of ``to_json``."""
        return ImageLabels(
            keypoints=np.array(record["keypoints"], np.float32).reshape(-1, 17, 3),
            boxes=np.array(record["boxes"], np.float32).reshape(-1, 4),
            areas=np.array(record["areas"], np.float32),
            human=np.array(record["human"], bool),
            ignore=np.array(record["ignore"], np.float32).reshape(-1, 4),
            unlabelled_channels=list(record["unlabelled_channels"]),
            only_near_people=bool(record["only_near_people"]),
        )


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (P, 4) and (Q, 4) as (P, Q)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    inter = np.clip(high - low, 0, None).prod(-1)
    union = a[:, 2:].prod(-1)[:, None] + b[:, 2:].prod(-1)[None] - inter
    return inter / np.maximum(union, 1e-6)


def keypoint_similarity(
    truth: np.ndarray, areas: np.ndarray, found: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Object keypoint similarity (COCO) of people (P, 17, 2) and (Q, 17, 2) as (P, Q).

    ``counts`` (P, Q, 17) bool says which keypoints are compared; 0 where none is.
    """
    var = (2 * np.array(COCO_17.sigmas)) ** 2
    d2 = ((truth[:, None] - found[None]) ** 2).sum(-1)
    terms = np.exp(-d2 / (2 * var * np.maximum(areas, 1.0)[:, None, None]))
    return (terms * counts).sum(-1) / np.maximum(counts.sum(-1), 1)


def merge(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    teacher: list[dict[str, Any]] | None = None,
    rule: TeacherRule | None = None,
) -> ImageLabels:
    """One image's labels from COCO-style annotations and, if there are, a teacher's.

    Human labels win: a teacher's person that overlaps a labelled one only fills the channels the
    data set does not label. ``teacher`` None means that no teacher has seen the image; an empty
    list that it found nobody.

    Args:
        image: may carry ``labelled_keypoints`` (indices; default all), ``all_people_labelled``
            (default true) and ``person_free``.
        annotations: COCO ``person`` annotations; v > 0 counts as labelled, occluded ones included.
        teacher: annotations with ``score`` and ``keypoint_scores``.
        rule: thresholds for the teacher.
    """
    rule = rule or TeacherRule()
    keypoints, boxes, areas, ignore = [], [], [], []
    for ann in annotations:
        raw = np.array(ann.get("keypoints") or np.zeros(51), np.float32).reshape(17, 3)
        box = np.array(ann["bbox"], np.float32)
        if ann.get("iscrowd") or not (raw[:, 2] > 0).any():
            ignore.append(box)
            continue
        raw[:, 2] = np.where(raw[:, 2] > 0, POSITIVE, ABSENT)
        keypoints.append(raw)
        boxes.append(box)
        areas.append(float(ann.get("area") or 0.53 * box[2] * box[3]))
    human = [True] * len(keypoints)

    labelled = set(image.get("labelled_keypoints", range(17)))
    channels = [k for k in range(17) if k not in labelled]
    complete = bool(image.get("all_people_labelled", True)) or bool(image.get("person_free"))
    if teacher is not None:
        filled = _add_teacher(keypoints, boxes, areas, human, ignore, teacher, channels, rule)
        if filled:
            channels = []
        complete = True
    return ImageLabels(
        keypoints=np.array(keypoints, np.float32).reshape(-1, 17, 3),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        areas=np.array(areas, np.float32),
        human=np.array(human, bool),
        ignore=np.array(ignore, np.float32).reshape(-1, 4),
        unlabelled_channels=channels,
        only_near_people=not complete,
    )


def _add_teacher(
    keypoints: list[np.ndarray],
    boxes: list[np.ndarray],
    areas: list[float],
    human: list[bool],
    ignore: list[np.ndarray],
    teacher: list[dict[str, Any]],
    channels: list[int],
    rule: TeacherRule,
) -> bool:
    """Appends a teacher's people in place; true if every labelled person was met by one."""
    own = len(keypoints)
    met = set()
    for ann in sorted(teacher, key=lambda a: -float(a["score"])):
        if ann["score"] < rule.weak_person:
            continue
        raw = np.array(ann["keypoints"], np.float32).reshape(17, 3)
        score = np.array(ann["keypoint_scores"], np.float32)
        raw[:, 2] = np.where(
            score > np.array(rule.keypoint, np.float32),
            POSITIVE,
            np.where(score > rule.weak_keypoint, WEAK, ABSENT),
        )
        box = np.array(ann["bbox"], np.float32)
        # Also among the teacher's own, better first: a second view of somebody is nobody, and
        # ignoring its box would hide the first.
        match = _same_person(raw, box, keypoints, boxes, areas)
        if match is not None:
            if match < own and match not in met and ann["score"] >= rule.person:
                met.add(match)
                keypoints[match][channels] = raw[channels]
            continue
        if ann["score"] < rule.person:
            # Within a known person it is more often a part of that one than somebody else, and
            # ignoring it would hide the one who is known.
            if not boxes or _covered(box, np.stack(boxes)).max() <= INSIDE:
                ignore.append(box)
        elif (raw[:, 2] == POSITIVE).any():
            keypoints.append(raw)
            boxes.append(box)
            areas.append(0.53 * float(box[2] * box[3]))
            human.append(False)
    return len(met) == own


def _covered(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Shares of an (x, y, w, h) box's area that lie within each of [N, 4] others."""
    low = np.maximum(others[:, :2], box[:2])
    high = np.minimum(others[:, :2] + others[:, 2:], box[:2] + box[2:])
    sides = np.clip(high - low, 0, None)
    return sides[:, 0] * sides[:, 1] / max(float(box[2] * box[3]), 1e-6)


def _same_person(
    raw: np.ndarray,
    box: np.ndarray,
    keypoints: list[np.ndarray],
    boxes: list[np.ndarray],
    areas: list[float],
) -> int | None:
    """Index of the known person that a teacher's person is, or None."""
    if not keypoints:
        return None
    truth = np.stack(keypoints)
    counts = (truth[:, None, :, 2] > 0) & (raw[None, None, :, 2] != ABSENT)
    oks = keypoint_similarity(truth[..., :2], np.array(areas), raw[None, :, :2], counts)[:, 0]
    oks = np.where(counts[:, 0].sum(-1) >= 3, oks, 0)
    like = np.maximum(oks, box_iou(np.stack(boxes), box[None])[:, 0])
    best = int(like.argmax())
    return best if like[best] > 0.4 else None
