"""The engine with products in bfloat16: how far it is from float32, and what must not change."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.config import NetworkConfig
from ifan.engine.engine import Engine
from ifan.faces import load
from ifan.network import Predictions
from ifan.ops import use_backend
from ifan.ops.native import bf16_refusal, cpu_module, cpu_refusal
from ifan.predictions import FacePredictions
from ifan.torch_runner import face_predictions
from tests.support.networks import CONFIGS, SMALL, faces, network, outputs, reference

WINOGRAD, DIRECT = 0.016, 0.004
"""Relative L2 error of one convolution against float64: measured 0.009 to 0.013, and 0.002 to 0.003."""


@pytest.fixture(params=["vectors", "tiles"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test with the kernels that multiply vectors (AVX512_BF16) and, where the processor has it, tiles (AMX)."""
    if bf16_refusal() is not None:
        pytest.skip(str(bf16_refusal()))
    cpu_module().use_tiles(request.param == "tiles")
    if request.param == "tiles" and not cpu_module().features()["tiles"]:
        pytest.skip(f"{cpu_module().features()['processor']} has no AMX")
    yield request.param
    cpu_module().use_tiles(True)


bf16 = pytest.mark.usefixtures("kernels")

ITERATION = 0.03
"""Relative L2 error of an iteration's outputs, from the same planes: measured 0.002 to 0.009; 0.016 where the two
logits of a classification are small."""

LAYERS = {
    "odd channels": (2, 7, 12, 64, 64),
    "rows of no whole vector": (3, 9, 13, 21, 37),
    "longer than a block": (2, 5, 12, 9, 200),
    "one row": (1, 4, 12, 1, 300),
    "a vector of tiles": (1, 16, 12, 16, 16),
    "chunks of channels": (1, 140, 12, 16, 32),
    "many outputs": (1, 33, 40, 32, 32),
}


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def planned(kind: str, x: Tensor, out: Tensor, *arguments: Any, threads: int = 1, **options: Any) -> Tensor:
    """A plan of one convolution of ``x``, run on ``threads``; ``arguments`` are those after the shape."""
    lanes, channels, height, width = x.shape
    plan, field = cpu_module().Plan(bf16=True), (x.data_ptr(), channels, x.stride(0), x.stride(1), 0)
    shape = (lanes, channels, *options.pop("size", (height, width)))
    getattr(plan, kind)([field], 0, [lanes], shape, *arguments, **options)
    cpu_module().run_plans([plan], threads)
    return out


def convolved(x: Tensor, weight: Tensor, norm: Tensor | None, epilogue: str, threads: int = 1) -> Tensor:
    outputs, inputs = weight.shape[:2]
    filters = torch.empty(cpu_module().packed_filters_bf16(outputs, inputs))
    cpu_module().pack_filters_bf16(weight.data_ptr(), outputs, inputs, filters.data_ptr())
    out = torch.full((x.shape[0], outputs, *x.shape[2:]), torch.nan)
    scale, shift = (0, 0) if norm is None else (norm[0].data_ptr(), norm[1].data_ptr())
    arguments = (scale, shift, filters.data_ptr(), outputs, epilogue, out.data_ptr(), out.stride(0))
    return planned("convolution", x, out, *arguments, threads=threads)


@bf16
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_convolution(layer: tuple[int, ...], kernels: str) -> None:
    bound = DIRECT if kernels == "tiles" else WINOGRAD
    lanes, inputs, outs, height, width = layer
    x, weight = torch.randn(lanes, inputs, height, width), torch.randn(outs, inputs, 3, 3)
    norm = torch.stack([torch.rand(inputs) + 0.5, 0.3 * torch.randn(inputs)])
    normalised = F.relu(x.double() * norm[0].double()[:, None, None] + norm[1].double()[:, None, None])
    exact = F.conv2d(normalised, weight.double(), padding=1)
    found = convolved(x, weight, norm, "none")
    assert error(found, exact) < bound
    assert torch.equal(found, convolved(x, weight, norm, "none", threads=3))
    assert torch.equal(found[-1:], convolved(x[-1:].contiguous(), weight, norm, "none"))
    raw = F.relu(F.conv2d(x.double(), weight.double(), padding=1))
    assert error(convolved(x, weight, None, "relu"), raw) < bound
    if outs % 4 == 0:
        split = raw.unflatten(1, (-1, 2, 2))  # channel 4 c + 2 i + j to row offset j, column offset i
        shifted = split.permute(0, 1, 4, 3, 5, 2).reshape(lanes, outs // 4, 2 * height, 2 * width)
        assert error(convolved(x, weight, None, "relu_phase_shift").reshape(shifted.shape), shifted) < bound


@bf16
@pytest.mark.parametrize("channels", [1, 6, 9])
@pytest.mark.parametrize(("kernel", "height", "width"), [(1, 5, 9), (1, 16, 64), (7, 12, 70), (7, 3, 16), (3, 40, 300)])
def test_direct_convolution(channels: int, kernel: int, height: int, width: int) -> None:
    padded = F.pad(torch.randn(2, channels, height, width), [kernel // 2] * 4)
    weight, row = torch.randn(13, channels, kernel, kernel), width + kernel - 1
    filters = torch.empty(cpu_module().packed_taps_bf16(13, channels, kernel**2))
    cpu_module().pack_taps_bf16(weight.data_ptr(), 13, channels, kernel**2, filters.data_ptr())
    offsets = [y * row + x for y in range(kernel) for x in range(kernel)]
    exact = F.relu(F.conv2d(padded.double(), weight.double()) + 1)

    def found(threads: int) -> Tensor:
        out = torch.ones(2, 13, height, width)
        arguments = (offsets, row, filters.data_ptr(), 13, out.data_ptr(), out.data_ptr(), out.stride(0), True)
        return planned("direct", padded, out, *arguments, bf16=True, size=(height, width), threads=threads)

    assert error(found(1), exact) < DIRECT
    assert torch.equal(found(1), found(3))


@bf16
def test_nan_of_one_channel_reaches_what_it_should_and_no_more(kernels: str) -> None:
    x, weight = torch.randn(1, 3, 16, 64), torch.randn(4, 3, 3, 3)
    x[0, 2, 0, 0] = torch.nan
    found = convolved(x, weight, None, "none")
    reach = 2 if kernels == "tiles" else 4  # Winograd's tile
    assert found[0, :, :reach, :reach].isnan().all()
    assert found[0, :, reach:].isfinite().all()
    assert found[0, :, :, reach:].isfinite().all()


def assert_near(found: FacePredictions, expected: Predictions) -> None:
    for actual, wanted in zip(outputs(found), outputs(expected), strict=True):
        assert actual.shape == wanted.shape
        if wanted.numel():
            assert 1e-5 < error(actual, wanted.double()) < ITERATION


@bf16
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_iteration_is_near_the_networks_from_the_same_planes(config: NetworkConfig) -> None:
    model, images = network(config), faces(2, config.image_size)
    first, second = reference(model, images, 2)
    engine = Engine.from_network(model, iterations=1, precision="bf16")
    assert_near(engine(images.numpy()), first)
    assert_near(engine(images.numpy(), face_predictions(first)), second)


@bf16
def test_faces_alone_and_any_number_of_threads_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifan.engine.engine._LARGEST_SLICE", 3 * 32 * 32)
    engine = Engine.from_network(network(SMALL), iterations=2, precision="bf16")
    images, before = faces(7, 32).numpy(), torch.get_num_threads()
    together = outputs(engine(images))
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for i in range(7):
                alone = outputs(engine(images[i : i + 1]))
                assert all(torch.equal(one[0], all_[i]) for one, all_ in zip(alone, together, strict=True))
    finally:
        torch.set_num_threads(before)


@bf16
def test_packaged_weights_see_the_same_face() -> None:
    """One photo; docs/kernels/engine.md has the validation sets."""
    photo = str(files("ifan") / "assets" / "astronaut.png")
    (exact,), (found,) = (load(precision=precision)(photo).faces for precision in ("fp32", "bf16"))
    assert exact.parsing is not None
    assert found.parsing is not None
    assert (exact.parsing != found.parsing).mean() < 0.005
    assert found.landmarks.keys() == exact.landmarks.keys()
    for name, point in exact.landmarks.items():
        assert found.landmarks[name] == pytest.approx(point, abs=0.5)  # pixels of the photo
    assert found.best("emotion") == (exact.best("emotion")[0], pytest.approx(exact.best("emotion")[1], abs=0.02))


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    if cpu_refusal():
        pytest.skip(f"native module: {cpu_refusal()}")
    with pytest.raises(ValueError, match=r"precision: expected 'fp32' or 'bf16'; got 'half'"):
        Engine.from_network(network(SMALL), precision="half")
    with use_backend("reference"), pytest.raises(ValueError, match=r"with the native engine; got .*'reference'"):
        load(precision="bf16")
    features = {**cpu_module().features(), "bf16": False, "processor": "Abacus"}
    monkeypatch.setattr(cpu_module(), "features", lambda: features)
    with pytest.raises(
        ValueError, match=r"expected a processor with AVX512_BF16; Abacus has no AVX512_BF16. Use 'fp32'"
    ):
        Engine.from_network(network(SMALL), precision="bf16")
