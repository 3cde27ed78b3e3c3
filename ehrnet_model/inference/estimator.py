"""PoseEstimator: image in, Poses out."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.decode import DecodeOptions, Peaks, decode, finished
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.poses import Expected, Poses, Timings
from ehrnet_model.inference.rotation import turned, turned_along, turned_back, turned_hw
from ehrnet_model.inference.runtime import Runtime
from ehrnet_model.inference.second_look import (
    SecondLook,
    Window,
    first_options,
    look,
    look_again,
    merge,
    open_closer,
    sees_whole,
)
from ehrnet_model.inference.sizes import best_named_size, parse_size
from ehrnet_model.skeleton import SkeletonInfo


@dataclass(frozen=True)
class _FirstLook:
    """What the engine said about a whole image: (J, 30, 15) float32, and how the image lay."""

    peaks: np.ndarray
    box: Letterbox

    def people(self, options: DecodeOptions, skeleton: SkeletonInfo) -> Poses:
        return decode(Peaks.from_output(self.peaks), options, skeleton, self.box)


@dataclass(frozen=True)
class Inferred:
    """What the engine said about images that went through it together; people are yet to be made.

    Attributes:
        looks: at each image, once or twice.
        options: how peaks become people.
        skeleton: of the model.
        timings: what was spent on each image so far.
        rotations: degrees clockwise by which each image was turned.
        sizes_hw: (height, width) of each image as it was.
    """

    looks: Sequence[Union[_FirstLook, SecondLook]]
    options: DecodeOptions
    skeleton: SkeletonInfo
    timings: Sequence[Timings]
    rotations: Sequence[int]
    sizes_hw: Sequence[Tuple[int, int]]

    @property
    def second_looks(self) -> List[int]:
        """How many people of each image were looked at again."""
        return [one.count if isinstance(one, SecondLook) else 0 for one in self.looks]

    def people(self) -> List[Tuple[Poses, Timings]]:
        """The people of each image and what each stage took; needs no engine, any thread may.

        In pixels of the images as they were before they were turned.

        Raises:
            EhrnetError: the engine gave values that are not finite.
        """
        results = []
        for seen, spent, rotation, image_hw in zip(
            self.looks, self.timings, self.rotations, self.sizes_hw
        ):
            begun = time.perf_counter()
            if isinstance(seen, SecondLook):
                people = merge(seen, self.options, self.skeleton)
            else:
                people = seen.people(self.options, self.skeleton)
            people = finished(people, self.options, self.skeleton)
            people = turned_back(people, rotation, image_hw)
            results.append((people, spent + Timings(0.0, 0.0, _ms_since(begun))))
        return results


class PoseEstimator:
    """Finds people in images with one engine; belongs to the engine's thread.

    Args:
        runtime: the engine.
        options: how peaks become people; may be replaced between images. Default: what the
            model's metadata say.
        size_hw: input size for an engine with free size, else the engine's own. Default: the
            variant's input size as the short side, at the aspect (square, 4:3, 16:9 or upright)
            that fits the image best.
        closer: the engine for second looks; default: ``runtime``, if its size is free. Without
            one, nobody is looked at again, whatever the options say.

    Attributes:
        rotation: degrees clockwise, one of ROTATIONS, by which images are turned before people are
            looked for, so that they stand upright, unless ``infer`` is told otherwise of each;
            what is found is in the images' own pixels. May be changed between images.
    """

    def __init__(
        self,
        runtime: Runtime,
        options: Optional[DecodeOptions] = None,
        size_hw: Optional[Tuple[int, int]] = None,
        closer: Optional[Runtime] = None,
    ) -> None:
        self.runtime = runtime
        self.closer = runtime if closer is None and runtime.size_hw is None else closer
        self.options = options or DecodeOptions.from_dict(runtime.info.decode)
        self.rotation = 0
        self.size_hw = size_hw or runtime.size_hw
        self._input = np.zeros((1, 0, 0, 3), np.uint8)

    @classmethod
    def open(
        cls,
        model: Path,
        runtime: str = "auto",
        size: str = "auto",
        decode: Optional[Mapping[str, Any]] = None,
    ) -> PoseEstimator:
        """A model with the decode options stored in it, and its engine for second looks.

        Args:
            model: what ``find_model`` gives.
            runtime: name of an engine, see ``open_runtime``.
            size: network input size by name or as HxW, see ``parse_size``; ``auto`` fits it to
                the images.
            decode: options instead of those stored, by the names of ``DecodeOptions``.

        Raises:
            EhrnetError: it cannot be opened, has no such size, or there is no such option.
        """
        with contextlib.ExitStack() as opened:
            engine = opened.enter_context(contextlib.closing(open_runtime(model, runtime)))
            size = size.strip().lower()
            size_hw = None if size == "auto" else parse_size(size, engine.info.input_size)
            options = DecodeOptions.from_dict(engine.info.decode, **(decode or {}))
            estimator = cls(engine, options, size_hw, open_closer(model, engine, options))
            opened.pop_all()
        return estimator

    def __call__(
        self, image: np.ndarray, rgb: bool = False, expected: Optional[Expected] = None
    ) -> Poses:
        """The people of a (h, w, 3) uint8 image, BGR unless ``rgb``, in its pixels.

        ``expected``: who should be in it, by those before: what ``PoseTracker.expected`` says.
        """
        return self.estimate(image, rgb, expected)[0]

    def estimate(
        self, image: np.ndarray, rgb: bool = False, expected: Optional[Expected] = None
    ) -> Tuple[Poses, Timings]:
        """The people and what each stage took.

        Raises:
            EhrnetError: the image has a wrong shape or type, or the engine failed or gave values
                that are not finite.
        """
        return self.infer([image], [rgb], [expected]).people()[0]

    def estimate_batch(
        self, images: Sequence[np.ndarray], rgb: Sequence[bool]
    ) -> List[Tuple[Poses, Timings]]:
        """The same for several images in one go of the engine, each stage's time shared out.

        Arguments and errors: those of ``infer`` and ``Inferred.people``.
        """
        return self.infer(images, rgb).people()

    def infer(
        self,
        images: Sequence[np.ndarray],
        rgb: Sequence[bool],
        expected: Optional[Sequence[Optional[Expected]]] = None,
        rotations: Optional[Sequence[int]] = None,
    ) -> Inferred:
        """The engine's part: people are made of its answer later, or elsewhere.

        Args:
            images: (h, w, 3) uint8 each, of sizes for which ``input_size`` is the same.
            rgb: which of them are RGB and not BGR.
            expected: who should be in each, in its pixels; None where nothing is known. An image
                that is not to be looked at as a whole still is where there are no second looks.
            rotations: by which each is turned, one of ROTATIONS; default: ``rotation`` for all.

        Raises:
            EhrnetError: an image has a wrong shape or type, the images need inputs of different
                sizes, or the engine failed.
        """
        started = time.perf_counter()
        known = [None] * len(images) if expected is None else expected
        turns = [self.rotation] * len(images) if rotations is None else rotations
        if not images or not len(images) == len(rgb) == len(known) == len(turns):
            raise EhrnetError(
                f"{len(images)} images, {len(rgb)} values of rgb, {len(known)} of expected and "
                f"{len(turns)} of rotations: give one or more images, and one value for each."
            )
        for image in images:
            if not isinstance(image, np.ndarray):
                raise EhrnetError(
                    f"expected an image as a NumPy array, got {type(image).__name__}: cv2.imread "
                    "reads one, and gives None where it cannot, so check the path."
                )
            if image.ndim != 3:
                raise EhrnetError(
                    f"expected an image of shape (height, width, 3), got {image.shape}: convert it "
                    "to three channels first."
                )
        sizes_hw = [(image.shape[0], image.shape[1]) for image in images]
        images = [turned(image, rotation) for image, rotation in zip(images, turns)]
        boxes = [
            Letterbox.fit(turned_hw(image_hw, rotation), self.input_size(image_hw, rotation))
            for image_hw, rotation in zip(sizes_hw, turns)
        ]
        size_hw = boxes[0].size_hw
        if any(box.size_hw != size_hw for box in boxes):
            raise EhrnetError(
                "images that need inputs of different sizes cannot share a batch: give them one by "
                "one, or set the size."
            )
        options, skeleton = self.options, self.runtime.info.skeleton
        closer = self.closer if options.second_look else None
        whole = [i for i, who in enumerate(known) if closer is None or sees_whole(who, options)]
        if self._input.shape[0] < len(whole) or self._input.shape[1:3] != size_hw:
            self._input = np.empty((len(whole), *size_hw, 3), np.uint8)
        inputs = self._input[: len(whole)]
        for number, out in zip(whole, inputs):
            boxes[number].apply(images[number], out)
            if rgb[number]:  # on the small picture, where it is cheap
                cv2.cvtColor(out, cv2.COLOR_RGB2BGR, dst=out)
        letterbox_ms = _ms_since(started) / len(images)
        begun = time.perf_counter()
        peaks = dict(zip(whole, self.runtime(inputs))) if whole else {}
        spent = Timings(letterbox_ms, _ms_since(begun) / len(images), 0.0)
        looks: List[Union[_FirstLook, SecondLook]] = []
        timings = []
        for number, (image, box) in enumerate(zip(images, boxes)):
            first = _FirstLook(peaks[number], box) if number in peaks else None
            if closer is None:
                assert first is not None  # each image was looked at as a whole
                looks.append(first)
                timings.append(spent)
                continue
            who = known[number]
            if who is not None:
                people = turned_along(who.people, turns[number], sizes_hw[number])
                who = dataclasses.replace(who, people=people)
            again, more = self._look_again(image, rgb[number], first, box.scale, closer, who)
            looks.append(again)
            timings.append(spent + more)
        return Inferred(looks, options, skeleton, timings, turns, sizes_hw)

    def _look_again(
        self,
        image: np.ndarray,
        rgb: bool,
        first: Optional[_FirstLook],
        scale: float,
        engine: Runtime,
        expected: Optional[Expected],
    ) -> Tuple[SecondLook, Timings]:
        skeleton, image_hw = self.runtime.info.skeleton, (image.shape[0], image.shape[1])
        options = self.options

        def closer(windows: Sequence[Window]) -> np.ndarray:
            return look(image, rgb, windows, engine)

        begun = time.perf_counter()
        people = Poses.empty(skeleton.num_keypoints)
        if first is not None:
            people = first.people(first_options(options), skeleton)
        decode_ms = _ms_since(begun)
        begun = time.perf_counter()
        again = look_again(people, scale, image_hw, options, skeleton, closer, expected=expected)
        return again, Timings(0.0, _ms_since(begun), decode_ms)

    def close(self) -> None:
        """Frees the engines."""
        self.runtime.close()
        if self.closer is not None and self.closer is not self.runtime:
            self.closer.close()

    def input_size(
        self, image_hw: Tuple[int, int], rotation: Optional[int] = None
    ) -> Tuple[int, int]:
        """(height, width) of the network input that an image of this size goes through.

        Args:
            image_hw: (height, width) of the image as it is.
            rotation: by which it is turned, one of ROTATIONS; default: the attribute.
        """
        if self.size_hw is not None:
            return self.size_hw
        short_side = self.runtime.info.input_size
        upright_hw = turned_hw(image_hw, self.rotation if rotation is None else rotation)
        return parse_size(best_named_size(upright_hw, short_side), short_side)


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000.0
