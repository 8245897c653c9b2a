"""The detector on the native kernels equals OpenCV's run of the same file."""

from __future__ import annotations

import threading
from importlib import resources

import cv2
import numpy as np
import pytest

from ifan.engine.centerface import CenterFaceEngine
from ifan.engine.onnx_weights import read_onnx
from ifan.native import cpu_module, cpu_refusal

pytestmark = pytest.mark.skipif(cpu_refusal() is not None, reason=f"native module: {cpu_refusal()}")

OUTPUTS = ("537", "538", "539", "540")


@pytest.fixture(scope="module")
def model() -> bytes:
    return (resources.files("ifan") / "assets" / "centerface.onnx").read_bytes()


@pytest.fixture(scope="module")
def engine(model: bytes) -> CenterFaceEngine:
    return CenterFaceEngine(model)


def picture(height: int, width: int) -> np.ndarray:
    """(3, H, W) float32: smooth, with every brightness."""
    coarse = np.random.default_rng(height + width).integers(0, 256, (height // 8, width // 8, 3))
    return np.ascontiguousarray(cv2.resize(coarse.astype(np.float32), (width, height)).transpose(2, 0, 1))


def opencv(model: bytes, x: np.ndarray) -> list[np.ndarray]:
    network = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
    network.setInput(x[None])
    return [out[0] for out in network.forward(list(OUTPUTS))]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.shape == wanted.shape
        assert np.abs(actual - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 224), (96, 64), (160, 288)])
def test_equals_opencv(model: bytes, engine: CenterFaceEngine, height: int, width: int) -> None:
    x = picture(height, width)
    assert_close(engine(x, 1), opencv(model, x))


@pytest.mark.parametrize("isa", cpu_module().features()["supported"] if cpu_refusal() is None else [])
def test_every_instruction_set(model: bytes, engine: CenterFaceEngine, isa: str) -> None:
    x, module = picture(64, 96), cpu_module()
    before = module.features()["isa"]
    module.use_isa(isa)
    try:
        found = engine(x, 1)
    finally:
        module.use_isa(before)
    assert_close(found, opencv(model, x))


def test_the_same_bits_for_any_number_of_threads_and_callers(engine: CenterFaceEngine) -> None:
    pictures = [picture(64, 96), picture(96, 64), picture(64, 96)[:, ::-1].copy()]
    alone = [engine(x, 1) for x in pictures]
    found: dict[int, list[np.ndarray]] = {}

    def call(i: int) -> None:
        found[i] = engine(pictures[i % 3], 1 + i % 3)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, maps in found.items():
        assert all(np.array_equal(a, b) for a, b in zip(maps, alone[i % 3], strict=True))


def test_a_later_picture_does_not_change_what_was_returned(engine: CenterFaceEngine) -> None:
    first = engine(picture(32, 32), 1)
    kept = [value.copy() for value in first]
    engine(picture(32, 32)[::-1].copy(), 1)
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((3, 33, 32), np.float32),
        np.zeros((1, 32, 32), np.float32),
        np.zeros((3, 32, 32)),
        np.zeros((3, 0, 32), np.float32),
    ],
    ids=["side", "channels", "dtype", "empty"],
)
def test_other_pictures_are_refused(engine: CenterFaceEngine, x: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"picture: expected \(3, H, W\) float32"):
        engine(x, 1)


def test_nodes_and_tensors_are_those_of_the_file(model: bytes) -> None:
    onnx = pytest.importorskip("onnx")
    whole = onnx.load_from_string(model).graph
    nodes, tensors = read_onnx(model)
    assert [(n.kind, n.inputs, n.outputs) for n in nodes] == [
        (n.op_type, tuple(n.input), tuple(n.output)) for n in whole.node
    ]
    floats = {t.name: onnx.numpy_helper.to_array(t) for t in whole.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert tensors.keys() == floats.keys()
    assert all(np.array_equal(tensors[name], value) for name, value in floats.items())


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -1000])
def test_a_damaged_file_is_refused(model: bytes, cut: int) -> None:
    with pytest.raises(ValueError, match="install the package again"):
        CenterFaceEngine(model[:cut])
