"""The published topology of human-pose-estimation-0007 with random weights, in OpenVINO's format.

The weights themselves cannot be part of a test: they are downloaded. The topology is the
publisher's (test/facts/omz); its constants are replaced: weights by random ones of a moderate
scale, the image's mean and the three factors behind the maps by their true values, and the
arithmetic that computes sizes by the sizes, which makes any input size possible.
"""

from __future__ import annotations

import gzip
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

TOPOLOGY = Path(__file__).parents[1] / "facts" / "omz" / "human-pose-estimation-0007.xml.gz"
SIDE = 448  # of the topology
MEAN_BGR = (103.53, 116.28, 123.675)


def write_pair(
    folder: Path, size_hw: tuple[int, int] = (SIDE, SIDE), precision: str = "FP32", seed: int = 0
) -> tuple[Path, Path]:
    """Writes ``human-pose-estimation-0007.xml`` and ``.bin`` and gives their paths.

    Args:
        folder: where; it must exist.
        size_hw: of the input.
        precision: FP32, or FP16: weights rounded to half precision and converted in the graph.
        seed: of the weights.
    """
    root = ET.fromstring(gzip.decompress(TOPOLOGY.read_bytes()))
    pair = _Pair(root, size_hw, precision == "FP16", np.random.default_rng(seed))
    xml, weights = (folder / f"human-pose-estimation-0007.{kind}" for kind in ("xml", "bin"))
    ET.ElementTree(root).write(xml)
    weights.write_bytes(pair.blob)
    return xml, weights


class _Pair:
    def __init__(
        self, root: ET.Element, size_hw: tuple[int, int], half: bool, rng: np.random.Generator
    ) -> None:
        layers, edges = root.find("layers"), root.find("edges")
        assert layers is not None and edges is not None
        self.layers, self.edges, self.half, self.rng = layers, edges, half, rng
        self.by_id = {layer.get("id"): layer for layer in layers}
        self.blob = bytearray()
        for layer in list(layers):
            kind = layer.get("type")
            if kind == "Parameter":
                layer.find("data").set("shape", "1,3,{},{}".format(*size_hw))
            elif kind == "Interpolate":
                given, wanted = self._dims(layer, "input"), self._dims(layer, "output")
                sizes = [d * s // SIDE for d, s in zip(wanted[2:], size_hw)]
                scales = [w / g for w, g in zip(wanted, given)]
                self._feed(layer, 1, np.array([*wanted[:2], *sizes], np.int64))
                self._feed(layer, 2, np.array(scales, np.float32))
            elif kind == "ReduceMean":
                self._feed(layer, 1, np.array([2, 3], np.int64))
            elif kind == "Unsqueeze" and layer.get("name") == "embeddings":
                self._feed(layer, 1, np.array([4], np.int64))
        self._prune()
        for layer in list(layers):
            if layer.get("type") == "Const" and not layer.get("name").startswith("new"):
                self._fill(layer)
        if not half:
            self._without_conversions()

    def _dims(self, layer: ET.Element, side: str) -> list[int]:
        return [int(dim.text) for dim in layer.find(f"{side}/port").findall("dim")]

    def _into(self, layer: ET.Element, port: int) -> ET.Element:
        number = layer.findall("input/port")[port].get("id")
        return next(
            edge
            for edge in self.edges
            if edge.get("to-layer") == layer.get("id") and edge.get("to-port") == number
        )

    def _store(self, values: np.ndarray) -> dict[str, str]:
        self.blob += bytes(-len(self.blob) % 64)
        start = len(self.blob)
        self.blob += values.tobytes()
        return {
            "element_type": {"i": "i", "f": "f"}[values.dtype.kind] + str(8 * values.itemsize),
            "shape": ",".join(map(str, values.shape)),
            "offset": str(start),
            "size": str(values.nbytes),
        }

    def _feed(self, layer: ET.Element, port: int, values: np.ndarray) -> None:
        """Puts a new constant in front of a layer's port."""
        id_ = str(10_000 + len(self.by_id))
        new = ET.SubElement(self.layers, "layer", id=id_, name=f"new{id_}", type="Const")
        new.set("version", "opset1")
        stored = self._store(values)
        ET.SubElement(new, "data", stored)
        precision = {"i64": "I64", "f32": "FP32"}[stored["element_type"]]
        out = ET.SubElement(ET.SubElement(new, "output"), "port", id="0", precision=precision)
        for n in values.shape:
            ET.SubElement(out, "dim").text = str(n)
        self.by_id[id_] = new
        edge = self._into(layer, port)
        edge.set("from-layer", id_)
        edge.set("from-port", "0")

    def _prune(self) -> None:
        """Drops what no output depends on any more."""
        feeds: dict[str, list[str]] = {}
        for edge in self.edges:
            feeds.setdefault(edge.get("to-layer"), []).append(edge.get("from-layer"))
        kept: set[str] = set()
        open_ = [i for i, layer in self.by_id.items() if layer.get("type") == "Result"]
        while open_:
            id_ = open_.pop()
            if id_ not in kept:
                kept.add(id_)
                open_ += feeds.get(id_, [])
        for layer in [x for x in self.layers if x.get("id") not in kept]:
            self.layers.remove(layer)
        for edge in [x for x in self.edges if x.get("to-layer") not in kept]:
            self.edges.remove(edge)

    def _fill(self, layer: ET.Element) -> None:
        shape = [int(n) for n in layer.find("data").get("shape").split(",") if n.strip()]
        count = math.prod(shape)
        if count == 1:
            values = np.array([self._factor(layer)])
        elif shape == [1, 3, 1, 1]:
            values = np.array(MEAN_BGR)
        elif shape[0] == 1 and len(shape) == 4:  # biases
            values = self.rng.uniform(-0.2, 0.2, count)
        else:
            fan = math.prod(shape[1:])
            if shape[-2:] == [4, 4]:  # transposed: each output cell sees four of its 16 places
                fan = shape[0] * 4
            gain = 1 / 64 if shape[1] == 3 and shape[-1] == 3 else 1.0  # the stem sees bytes
            values = self.rng.normal(0, gain * math.sqrt(0.7 / fan), count)
        kind = np.float16 if self.half else np.float32
        data = layer.find("data")
        data.attrib.clear()
        data.attrib.update(
            self._store(
                values.reshape(shape).astype(np.float16).astype(kind)
                if self.half
                else values.reshape(shape).astype(kind)
            )
        )

    def _factor(self, layer: ET.Element) -> float:
        """Mean of two maps: 0.5; sign of what is no maximum: 2 times (0 or 1), minus 1."""
        edges = {edge.get("from-layer"): edge.get("to-layer") for edge in self.edges}
        reader = self.by_id[edges[edges[layer.get("id")]]]
        if reader.get("type") == "Subtract":
            return 1.0
        source = self.by_id[self._into(reader, 0).get("from-layer")]
        return 2.0 if source.get("type") in ("Convert", "Equal") else 0.5

    def _without_conversions(self) -> None:
        """The form of a release in full precision: no half-precision constants to convert."""
        source = {edge.get("to-layer"): edge for edge in self.edges}
        for layer in list(self.layers):
            edge = source.get(layer.get("id"))
            if layer.get("type") != "Convert" or edge is None:
                continue
            constant = self.by_id[edge.get("from-layer")]
            if constant.get("type") != "Const":
                continue
            for port in constant.findall("output/port"):
                port.set("precision", "FP32")
            for other in self.edges:
                if other.get("from-layer") == layer.get("id"):
                    other.set("from-layer", constant.get("id"))
                    other.set("from-port", edge.get("from-port"))
            self.edges.remove(edge)
            self.layers.remove(layer)
