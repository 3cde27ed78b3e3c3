"""Reads a network in OpenVINO's two files as a graph: .xml (layers, edges) and .bin (constants).

Only what importing weights needs: kinds, attributes, who feeds whom, and the values of constants.
Offsets into the .bin differ from release to release, so both files must be of one.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ehrnet_model.errors import EhrnetError

_TYPES = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4")}
# Layers that only pass a constant on; reshaping keeps the order of its values.
_PASSES = ("Convert", "Reshape")


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        id: as in the file.
        name, kind: its name, and its type such as ``Convolution``.
        attributes: of its operation, as text.
        inputs: ids of the layers that feed it, in the order of its ports.
    """

    id: str
    name: str
    kind: str
    attributes: Mapping[str, str]
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A network as its files hold it.

    Attributes:
        origin: the .xml, for errors.
        layers: by id, in the file's order.
        readers: ids of the layers that a layer feeds.
        blob: content of the .bin.
    """

    origin: str
    layers: Mapping[str, Layer]
    readers: Mapping[str, tuple[str, ...]] = field(repr=False)
    blob: bytes = field(repr=False)

    def of_kind(self, kind: str) -> list[Layer]:
        """All layers of a kind."""
        return [layer for layer in self.layers.values() if layer.kind == kind]

    def constant_id(self, id_: str) -> str | None:
        """The constant behind a layer, through conversions; None where there is none."""
        layer = self.layers[id_]
        while layer.kind in _PASSES:
            layer = self.layers[layer.inputs[0]]
        return layer.id if layer.kind == "Const" else None

    def value(self, id_: str) -> np.ndarray:
        """Values of the constant behind a layer, float32, in the shape they are stored in.

        Raises:
            EhrnetError: no floating-point constant, or the .bin ends before it.
        """
        constant = self.constant_id(id_)
        layer = self.layers[constant or id_]
        dtype = _TYPES.get(layer.attributes.get("element_type", ""))
        if constant is None or dtype is None:
            raise EhrnetError(f"{self.origin}: layer {layer.name} holds no floating-point values.")
        try:
            shape = tuple(int(n) for n in layer.attributes["shape"].split(",") if n.strip())
            start, size = int(layer.attributes["offset"]), int(layer.attributes["size"])
            if start < 0 or min(shape, default=1) < 0:
                raise ValueError("negative")
            flat = np.frombuffer(self.blob[start : start + size], dtype)
            return flat.reshape(shape).astype(np.float32)
        except (ValueError, KeyError) as error:
            raise EhrnetError(
                f"the values of {layer.name} are not in the .bin beside {self.origin} ({error}): "
                "both files must be of the same release, and complete."
            ) from None


def read_graph(xml: Path, weights: Path) -> Graph:
    """Reads both files.

    Raises:
        EhrnetError: a file is missing, or the .xml does not describe a network.
    """
    try:
        text, blob = Path(xml).read_bytes(), Path(weights).read_bytes()
    except OSError as error:
        raise EhrnetError(f"{error.filename} cannot be read: {error.strerror}.") from None
    try:
        if b"<!DOCTYPE" in text:
            raise ValueError("document type")
        root = ET.fromstring(text)
        feeds: dict[str, dict[int, str]] = {}
        readers: dict[str, list[str]] = {}
        for edge in root.iterfind("edges/edge"):
            source, target = edge.attrib["from-layer"], edge.attrib["to-layer"]
            feeds.setdefault(target, {})[int(edge.attrib["to-port"])] = source
            readers.setdefault(source, []).append(target)
        layers = {}
        for item in root.iterfind("layers/layer"):
            data = item.find("data")
            ports = feeds.get(item.attrib["id"], {})
            layers[item.attrib["id"]] = Layer(
                item.attrib["id"],
                item.attrib["name"],
                item.attrib["type"],
                {} if data is None else data.attrib,
                tuple(ports[port] for port in sorted(ports)),
            )
        known = layers.keys()
        if not layers or not (feeds.keys() <= known and readers.keys() <= known):
            raise ValueError("edges without layers")
    except (ET.ParseError, KeyError, ValueError) as error:
        raise EhrnetError(f"{xml} does not describe an OpenVINO network ({error}).") from None
    return Graph(str(xml), layers, {k: tuple(v) for k, v in readers.items()}, blob)
