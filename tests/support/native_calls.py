"""Right calls of every entry of the native module, and what is wrong in hostile ones."""

from __future__ import annotations

from typing import Any

import torch

from ifan.ops import native

# fmt: off
FAR, HUGE = 2**40, 2**62
X, VALUES, MAPS, FILTERS = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3), torch.zeros(4096), torch.zeros(4096)
ROWS = torch.tensor([0, 1, 1])
BAD_ROWS = torch.tensor([[0, 1, 2], [0, -1, 1], [HUGE, 0, 0], [0, 0, -HUGE]])
TO, BYTES = MAPS.data_ptr(), torch.zeros(4096, dtype=torch.uint8)
FIELD = (X.data_ptr(), 3, 48, 16, 2)
"""The maps of two samples, read by three lanes."""
READ: dict[str, Any] = {"sources": [FIELD], "rows": ROWS.data_ptr(), "segments": [3], "shape": (3, 3, 4, 4)}
SIZES, NEGATIVE = (-1, HUGE), (-1,)
BAD_READS = [
    *(("rows", row.data_ptr()) for row in BAD_ROWS),
    ("rows", 0),
    ("sources", []),
    ("sources", [FIELD, FIELD]),
    *(
        ("sources", [(*FIELD[:i], value, *FIELD[i + 1 :])])
        for i in (1, 2, 3, 4)
        for value in SIZES
        if (i, value) != (4, HUGE)
    ),
    ("sources", [(0, *FIELD[1:])]),
    *(("segments", counts) for counts in ([2], [4, -1], [HUGE, HUGE, HUGE, HUGE], [1, HUGE])),
    *(
        ("shape", shape)
        for shape in ((3, 3, -4, -4), (3, 3, 2**31, 2**31), (2, 3, 4, 4), (3, 4, 4, 4), (HUGE, 3, 4, 4))
    ),
]


def each(*names: str, values: tuple[int, ...] = SIZES) -> list[tuple[str, Any]]:
    return [(name, value) for name in names for value in values]


def inside(name: str, right: tuple[int, ...], values: tuple[int, ...] = SIZES) -> list[tuple[str, Any]]:
    """Each number of an argument made wrong."""
    return [(name, (*right[:i], value, *right[i + 1 :])) for i in range(len(right)) for value in values]


ISA = native.cpu_module().isa() if native.cpu_refusal() is None else "baseline"
MOMENTS = {
    "x": X.data_ptr(), "dtype": "float32", "shape": (2, 3, 4, 4), "strides": (48, 16, 4, 1), "segments": [1, 1],
}
BORDER = (100, 10, 3, 3, 0, 0)
NORM = [(VALUES.data_ptr(), 3)] * 4
LOSS: dict[str, Any] = {
    "logits": (2, 5, 6, 4), "labels": (6, 4), "points": (3, 5), "rows": 4, "sizes": [3, 4],
    "settings": [0.0, 0.0, 0.1, 0.02], "kind": "wing",
}
ENTRIES: list[tuple[str, dict[str, Any], list[tuple[str, Any]]]] = [
    (
        "channel_moments_forward",
        {**MOMENTS, "mean": TO, "var": TO, "threads": 1},
        [*inside("shape", (2, 3, 4, 4)), *inside("strides", (48, 16, 4, 1)), ("segments", [3, -1]), ("segments", [1]),
         ("x", 0), ("mean", 0), ("var", 0), ("threads", 0)],
    ),
    (
        "channel_moments_backward",
        {**MOMENTS, "mean": TO, "of_mean": TO, "of_var": TO, "gradient": TO, "to": (48, 16, 4, 1), "before": 0,
         "threads": 1},
        [*inside("to", (48, 16, 4, 1)), *inside("shape", (2, 3, 4, 4)), ("gradient", 0), ("of_var", 0),
         ("threads", -1)],
    ),
    (
        "integrate_forward",
        {**READ, "pool": 2, "scale": TO, "shift": TO, "out": TO, "threads": 1},
        [*BAD_READS, *each("pool", values=(0, 3, -1)), ("scale", 0), ("shift", 0), ("out", 0), ("threads", 0)],
    ),
    (
        "integrate_backward",
        {**READ, "targets": [(TO, 48, 0)], "pool": 2, "scale": TO, "shift": TO, "mean": TO, "gradient": TO,
         "sums": TO, "threads": 1},
        [*BAD_READS, ("targets", []), ("targets", [(0, 48, 0)]), ("targets", [(TO, -48, 0)]),
         ("targets", [(TO, HUGE, 0)]),
         ("mean", 0), ("sums", 0), ("gradient", 0)],
    ),
    ("packed_filters", {"outputs": 2, "inputs": 3, "isa": ISA}, each("outputs", "inputs")),
    (
        "pack_filters",
        {"weights": [(TO, 2, 3, 27)], "transposed": False, "filters": FILTERS.data_ptr(), "isa": ISA, "threads": 1},
        [*(("weights", [wrong]) for _, wrong in inside("", (TO, 2, 3, 27))[2:]), ("weights", [(0, 2, 3, 27)]),
         ("filters", 0), ("threads", 0)],
    ),
    ("packed_taps", {"outputs": 2, "products": 3}, each("outputs", "products")),
    ("pack_taps", {"weight": TO, "outputs": 2, "products": 3, "filters": FILTERS.data_ptr()},
     [*each("outputs", "products"), ("weight", 0), ("filters", 0)]),
    ("packed_small_filters", {"outputs": 2, "inputs": 3}, each("outputs", "inputs")),
    ("pack_small_filters", {"weight": TO, "outputs": 2, "inputs": 3, "filters": FILTERS.data_ptr()},
     [*each("outputs", "inputs"), ("weight", 0), ("filters", 0)]),
    ("fits_small_maps", {"height": 2, "width": 2}, each("height", "width")),
    (
        "convolution_backward",
        {**READ, "targets": [(TO, 48, 0)], "isa": ISA, "filters": FILTERS.data_ptr(), "outputs": 2, "gradient": TO,
         "stride": 32,
         "shares": TO, "parts": 2, "of_weight": TO, "threads": 1},
        [*BAD_READS, ("targets", []), *each("outputs", "stride"), *each("parts", values=(-1, 0, 4)), ("filters", 0),
         ("gradient", 0), ("shares", 0), ("of_weight", 0)],
    ),
    ("normalisation", {"norm": NORM, "tasks": 2, "channels": 3, "eps": 0.001, "affine": TO},
     [*each("tasks", "channels"), ("affine", 0), ("norm", [*NORM[:3], (0, 3)]), ("norm", [*NORM[:3], (TO, -3)])]),
    ("normalisation_backward",
     {"sums": TO, "segments": [2, 1], "channels": 3, "scale": TO, "var": NORM[0], "eps": 0.001, "gradients": NORM},
     [("segments", [-2, 1]), ("segments", [HUGE, HUGE]), *each("channels"), ("sums", 0), ("scale", 0),
      ("var", (0, 3))]),
    (
        "encode_forward",
        {"parsing": TO, "points": TO, "logits": TO, "sizes": [3, 2], "shape": (2, 1, 4, 4), "count": 2, "radius": 2,
         "out": TO, "threads": 1},
        [("sizes", [7, -2]), ("sizes", [HUGE, HUGE]), ("shape", (2, 1, 4, 5)), *inside("shape", (2, 1, 4, 4)),
         *each("count"),
         *each("radius", values=(-1, FAR, HUGE)), ("out", 0), ("points", 0), ("parsing", 0), ("logits", 0),
          ("threads", 0)],
    ),
    (
        "encode_backward",
        {"gradient": TO, "parsing": TO, "logits": TO, "sizes": [3, 2], "shape": (2, 1, 4, 4), "count": 2,
         "of_parsing": TO,
         "of_logits": TO, "threads": 1},
        [("sizes", [7, -2]), *inside("shape", (2, 1, 4, 4)), *each("count"), ("gradient", 0), ("of_parsing", 0),
         ("of_logits", 0)],
    ),
    (
        "HybridLoss",
        LOSS,
        [*inside("logits", (2, 5, 6, 4)), *inside("labels", (6, 4)), *inside("points", (3, 5)), *each("rows"),
         ("sizes", [9, -2]), ("sizes", [HUGE, HUGE]), ("settings", [1.0, 0.0, 0.1, 0.02]),
          ("settings", [0.0, -0.1, 0.1, 0.02]),
         ("settings", [0.0, 0.0, 0.0, 0.02]), ("settings", [0.0, 0.0, 0.1, float("nan")]), ("kind", "l3")],
    ),
]
STEPS: list[tuple[str, dict[str, Any], list[tuple[str, Any]]]] = [
    (
        "convolution",
        {**READ, "scale": TO, "shift": TO, "filters": FILTERS.data_ptr(), "outputs": 4, "epilogue": "none", "out": TO,
         "stride": 64},
        [*BAD_READS, *each("outputs", "stride"), ("scale", 0), ("filters", 0), ("out", 0), ("epilogue", "gelu")],
    ),
    ("convolution", {**READ, "scale": 0, "shift": 0, "filters": TO, "outputs": 4, "epilogue": "relu_phase_shift",
     "out": TO, "stride": 64},
     [("outputs", 3)]),
    ("integrate", {**READ, "pool": 2, "scale": TO, "shift": TO, "out": TO},
     [*BAD_READS, *each("pool", values=(0, 3)), ("scale", 0), ("out", 0)]),
    (
        "direct",
        {**READ, "offsets": [0], "step": 4, "filters": TO, "outputs": 2, "initial": 0, "out": TO, "stride": 32,
         "relu": False},
        [*BAD_READS, *(("offsets", [value]) for value in (-1, 1, HUGE)), *each("step", values=(-1, 5, HUGE)),
         *each("outputs", "stride"), ("filters", 0), ("out", 0)],
    ),
    ("head", {**READ, "weight": TO, "bias": TO, "outputs": 2, "out": TO},
     [*BAD_READS, *each("outputs"), ("weight", 0), ("bias", 0), ("out", 0)]),
    ("heat_maps", {"maps": [TO, TO], "lanes": 1, "points": 2, "size": 16, "out": TO},
     [*each("lanes", "points", "size"), ("size", 8), ("size", 24), ("maps", []), ("maps", [TO] * 6),
      ("maps", [TO, 0]), ("out", 0)]),
    ("image", {"images": BYTES.data_ptr(), "lanes": 1, "size": 4, "fold": 2, "mean": (0, 0, 0), "scale": 1.0,
     "out": TO, "border": BORDER},
     [*each("lanes", "size", "fold"), ("fold", 0), *inside("border", BORDER)[:10], ("border", (54, 10, 3, 3, 0, 0)),
      ("out", 0)]),
    ("border", {"x": TO, "lanes": 2, "stride": 32, "planes": 2, "size": 4, "out": TO, "border": BORDER},
     [*each("lanes", "stride", "planes", "size"), ("border", (66, 10, 3, 3, 0, 0)), ("border", (68, 5, 3, 3, 50, 1)),
      ("x", 0)]),
    (
        "encode",
        {"parsing": TO, "points": TO, "logits": [TO, TO], "sizes": [3, 2], "lanes": 2, "classes": 1, "count": 2,
         "size": 4,
         "radius": 2, "out": TO},
        [("sizes", [7, -2]), ("logits", [TO]), ("logits", [TO, 0]), *each("lanes", "classes", "count", "size"),
         *each("radius", values=(-1, FAR)), ("out", 0)],
    ),
    (
        "stem_shares",
        {"share": TO, "lanes": 1, "outputs": 2, "size": 8, "classes": TO, "count": 2, "stride": 128, "table": TO,
         "points": TO,
         "discs": 2, "radius": 2, "filters": TO, "out": TO},
        [*each("lanes", "outputs", "size", "count", "stride", "discs"), ("size", 4),
         *each("radius", values=(-1, 0, FAR)),
         ("points", 0), ("out", 0)],
    ),
    ("class_maps",
     {"planes": TO, "lanes": 1, "stride": 48, "plane": 16, "width": 3, "weights": [TO] * 3, "maps": [TO] * 3,
      "sizes": (4, 2, 1)},
     [*each("lanes", "stride", "plane", "width"), *inside("sizes", (4, 2, 1)), ("weights", [TO, TO, 0]),
      ("maps", [0, TO, TO])]),
    ("max_pool", {"x": TO, "planes": 2, "height": 2, "width": 2, "out": TO},
     [*each("planes", "height", "width"), ("x", 0)]),
    ("add_shared", {"x": TO, "y": TO, "lanes": 2, "values": 4, "out": TO}, [*each("lanes", "values"), ("y", 0)]),
]
