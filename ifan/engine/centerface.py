"""CenterFace on the native kernels: MobileNetV2, three steps up, four heads (Xu et al., arXiv 1911.03599)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ifan.engine.onnx_weights import read_onnx
from ifan.native import cpu_module

_EPSILON = 1e-3
_RESIDUALS = (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)
"""Blocks of MobileNetV2, counted from 0, whose input is added to their output."""
_STRIDED = (1, 3, 6, 13)
"""Blocks whose depthwise convolution halves the side."""
_LATERAL = (12, 5, 2)
"""Blocks that the steps up add, from the coarsest."""
_MOST_PLANS = 4
"""Sizes of pictures whose plans are kept."""

Pair = tuple[np.ndarray, np.ndarray]
"""Weight and bias."""


class CenterFaceEngine:
    """The detector's network; ``model`` is the ONNX file in the package. May be called from several threads.

    Raises ``ValueError`` for another file and ``ImportError`` where the native kernels are missing.
    """

    def __init__(self, model: bytes) -> None:
        self._weights = _Weights(model)
        self._plans: OrderedDict[tuple[int, int, str], list[_Plan]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, picture: np.ndarray, threads: int) -> list[np.ndarray]:
        """``picture`` (3, H, W) float32 RGB, 0 to 255, sides multiples of 32, to maps of a quarter of its sides: heat
        (1, h, w) in [0, 1], logarithm of height and width (2, h, w), offset (2, h, w), points (10, h, w)."""
        sides = picture.shape[1:]
        if (
            picture.dtype != np.float32
            or picture.shape[:1] != (3,)
            or len(sides) != 2
            or any(n % 32 or not n for n in sides)
        ):
            raise ValueError(
                f"picture: expected (3, H, W) float32, sides multiples of 32; got {picture.shape} {picture.dtype}. "
                "Pad it."
            )
        key = (*picture.shape[1:], cpu_module().features()["isa"])
        with self._lock:
            kept = self._plans.pop(key, [])
            plan = kept.pop() if kept else None
            self._plans[key] = kept
            while len(self._plans) > _MOST_PLANS:
                self._plans.popitem(last=False)
        plan = plan or _Plan(self._weights, *picture.shape[1:])
        plan.picture[:] = picture
        cpu_module().run_plans([plan.plan], threads)
        maps = plan.maps.copy()
        with self._lock:
            if key in self._plans:
                self._plans[key].append(plan)
        np.negative(maps[0], out=maps[0])
        maps[0] = 1 / (1 + np.exp(maps[0]))
        return [maps[:1], maps[1:3], maps[3:5], maps[5:]]


@dataclass
class _Weights:
    """The file's weights by place, packed for one instruction set at a time."""

    model: bytes
    blocks: list[list[Pair]] = field(init=False)
    """Of each block: expansion (block 0: the first convolution), depthwise, projection."""
    laterals: list[Pair] = field(init=False)
    ups: list[Pair] = field(init=False)
    head: Pair = field(init=False)
    outputs: Pair = field(init=False)
    _packed: dict[tuple[Any, ...], np.ndarray] = field(init=False, default_factory=dict)
    _lock: Any = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        nodes, tensors = read_onnx(self.model)
        self.model = b""
        convolutions = [_pair(n.inputs, tensors) for n in nodes if n.kind == "Conv"]
        if len(convolutions) != 60:
            raise ValueError(
                f"CenterFace: expected 60 convolutions; got {len(convolutions)}. Install the package again."
            )
        trunk, rest = convolutions[:51], convolutions[51:]
        self.blocks = [trunk[3 * i : 3 * i + 3] for i in range(17)]
        self.laterals, self.head, heads = rest[:4], rest[4], rest[5:]
        self.outputs = np.concatenate([w for w, _ in heads]), np.concatenate([b for _, b in heads])
        ups = [tensors[n.inputs[1]] for n in nodes if n.kind == "ConvTranspose"]
        norms = [[tensors[name] for name in n.inputs[1:]] for n in nodes if n.kind == "BatchNormalization"]
        self.ups = [_up(weight, *norm) for weight, norm in zip(ups, norms, strict=True)]

    def packed(self, name: Any, weight: np.ndarray) -> int:
        """Address of a weight ``(O, products)`` as the kernels of the instruction set in use read it."""
        module = cpu_module()
        with self._lock:
            key = (name, module.features()["isa"])
            if key not in self._packed:
                outputs, products = weight.shape[0], weight[0].size
                whole, filters = (
                    np.ascontiguousarray(weight),
                    np.empty(module.packed_taps(outputs, products), np.float32),
                )
                module.pack_taps(whole.ctypes.data, outputs, products, filters.ctypes.data)
                self._packed[key] = filters
            return self._packed[key].ctypes.data


def _pair(inputs: tuple[str, ...], tensors: dict[str, np.ndarray]) -> Pair:
    return np.ascontiguousarray(tensors[inputs[1]]), np.ascontiguousarray(tensors[inputs[2]])


def _up(weight: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray) -> Pair:
    """A transposed 2x2 convolution ``(C, O, 2, 2)`` of stride 2 and its normalisation as a 1x1 convolution to subpixels
    ``(4 O, C)``."""
    scale = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + _EPSILON)
    folded = weight.transpose(1, 2, 3, 0) * scale[:, None, None, None]
    bias = np.repeat(beta - mean * scale, 4)
    return folded.reshape(-1, weight.shape[0]).astype(np.float32), bias.astype(np.float32)


class _Plan:
    """The recorded calls for pictures of one size, and their memory."""

    def __init__(self, weights: _Weights, height: int, width: int) -> None:
        self.weights, self.plan, self.memory = weights, cpu_module().Plan(), list[np.ndarray]()
        self.picture = np.empty((3, height, width), np.float32)
        x, kept = self.picture, dict[int, np.ndarray]()
        for i, (first, depthwise, last) in enumerate(weights.blocks):
            stride = 2 if i in _STRIDED else 1
            x = kept[i] = self._record(i, x, last, first, depthwise, stride, add=x if i in _RESIDUALS else None)
        x = self._record("deepest", x, weights.laterals[0], relu=True)
        for i, up, lateral in zip(_LATERAL, weights.ups, weights.laterals[1:], strict=True):
            beside = self._record(("lateral", i), kept[i], lateral, relu=True)
            x = self._record(("up", i), x, up, relu=True, subpixels=True, add=beside)
        self.maps = self._record("heads", x, weights.outputs, weights.head)

    def _record(
        self,
        name: Any,
        x: np.ndarray,
        last: Pair,
        first: Pair | None = None,
        depthwise: Pair | None = None,
        stride: int = 1,
        **end: Any,
    ) -> np.ndarray:
        """One `Plan.mobile_block`; its output."""
        kernel = first[0].shape[2] if first else 1
        first_stride = 2 if x is self.picture else 1
        outputs, step = last[0].shape[0], first_stride * stride
        subpixels, add = end.get("subpixels", False), end.get("add")
        height, width = (n // step * (2 if subpixels else 1) for n in x.shape[1:])
        out = np.empty((outputs // 4 if subpixels else outputs, height, width), np.float32)
        self.memory += [x, out]
        self.plan.mobile_block(
            x.ctypes.data,
            x.shape,
            self._dense((name, "first"), first, kernel, first_stride) if first else (0,) * 5,
            (*self._addresses(depthwise), stride) if depthwise else (0,) * 3,
            self._dense((name, "last"), last, end.get("relu", False), subpixels),
            0 if add is None else add.ctypes.data,
            out.ctypes.data,
        )
        return out

    def _dense(self, name: Any, pair: Pair, *rest: int) -> tuple[int, ...]:
        return self.weights.packed(name, pair[0]), pair[1].ctypes.data, pair[0].shape[0], *map(int, rest)

    @staticmethod
    def _addresses(pair: Pair) -> tuple[int, int]:
        return pair[0].ctypes.data, pair[1].ctypes.data
