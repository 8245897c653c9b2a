"""Tensors and nodes of an ONNX file, without the package ``onnx``: the few fields that the packaged detector needs.

Source: the messages ModelProto, GraphProto, NodeProto and TensorProto of ``onnx.proto`` and protobuf's wire format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_FLOAT32 = 1


class Node(NamedTuple):
    """One operation: its type and the names of what it reads and gives."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(data: bytes) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Nodes in order and float32 initializers by name; ``ValueError`` for bytes that are no such model."""
    try:
        graph = next(value for field, value in _fields(memoryview(data)) if field == _GRAPH)
        assert isinstance(graph, memoryview)
        nodes, tensors = list[Node](), dict[str, np.ndarray]()
        for field, value in _fields(graph):
            if field == _NODE and isinstance(value, memoryview):
                nodes.append(_node(value))
            elif field == _INITIALIZER and isinstance(value, memoryview):
                tensors |= _tensor(value)
    except (StopIteration, IndexError, AssertionError, UnicodeDecodeError) as error:
        raise ValueError(
            "not an ONNX model of float32 tensors: the file is damaged; install the package again"
        ) from error
    return nodes, tensors


def _node(data: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 4: []}
    for field, value in _fields(data):
        if field in texts and isinstance(value, memoryview):
            texts[field].append(bytes(value).decode())
    return Node(texts[4][0], tuple(texts[1]), tuple(texts[2]))


def _tensor(data: memoryview) -> dict[str, np.ndarray]:
    """A float32 tensor by its name; nothing for another type."""
    shape, name, raw = list[int](), "", memoryview(b"")
    for field, value in _fields(data):
        if field == 1:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif field == 2 and value != _FLOAT32:
            return {}
        elif field == 8 and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif field in (4, 9) and isinstance(value, memoryview):  # packed floats and raw bytes are the same
            raw = value
    assert len(raw) == 4 * math.prod(shape)
    return {name: np.frombuffer(raw, np.float32).reshape(shape).copy()}  # the file does not align them


def _packed(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field; bytes are views."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield field, value
            continue
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            length, at = _varint(data, at)
        assert (length and at + length <= len(data)) or (kind == 2 and length == 0)
        yield field, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        assert shift < 70
