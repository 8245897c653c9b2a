from __future__ import annotations

import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ifan import ops
from ifan.config import NetworkConfig
from ifan.engine.arena import address, zeros
from ifan.engine.engine import Engine
from ifan.engine.predictor import make_runner
from ifan.engine.stem import _first_constants
from ifan.engine.weights import PackedWeights
from ifan.network import IFAN, fold_training_extras
from ifan.ops import backend_status
from ifan.torch_runner import TorchRunner, face_predictions
from ifan.weights import model_of
from tests.support.networks import CONFIGS, SMALL, TOLERANCE, assert_equal, faces, network, outputs, reference

_MISSING = next(row for row in backend_status() if row.name == "cpu")
pytestmark = pytest.mark.skipif(not _MISSING.available, reason=f"native module: {_MISSING.reason}")


def engine(model: IFAN, iterations: int | None = None, tasks: list[str] | None = None) -> Engine:
    return Engine.from_network(model, iterations=iterations, tasks=tasks)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_iteration_equals_the_networks_from_the_same_planes(config: NetworkConfig) -> None:
    model, images = network(config), faces(2, config.image_size)
    first, second = reference(model, images, 2)
    assert_equal(engine(model, 1)(images.numpy()), first)
    assert_equal(engine(model)(images.numpy(), face_predictions(first)), second)


BORDERS = {
    "sides": ((0.45, 0.1), (-0.45, -0.1), (0.1, 0.45), (-0.1, -0.45), (0.55, 0.05)),
    "corners": ((0.45, 0.45), (-0.45, -0.45), (0.56, -0.56), (-0.56, 0.56), (0.9, -0.9)),
}
"""Points whose disc, or the filters' reach around it, goes beyond a border or lies beyond it."""


@pytest.mark.parametrize("points", BORDERS.values(), ids=BORDERS)
def test_discs_at_every_border_are_drawn_as_far_as_they_lie_inside(points: Sequence[tuple[float, float]]) -> None:
    model, images = network(SMALL), faces(2, 32)
    with torch.no_grad():
        model.landmark_head.weight *= 1e-6
        model.landmark_head.bias.copy_(torch.tensor(points).T.flatten())
    first, second = reference(model, images, 2)
    assert (first.points - torch.tensor(points).T).abs().max() < 1e-3
    assert_equal(engine(model, 2)(images.numpy()), second)


def test_the_whole_loop_feeds_back_what_it_predicted() -> None:
    """Discs are rounded, so the loop may jump; with these weights no centre lies near a half."""
    model, images = network(SMALL), faces(3, 32)
    assert_equal(engine(model, 3)(images.numpy()), reference(model, images, 3)[-1])


@pytest.mark.full
def test_at_128_pixels() -> None:
    model, images = network(NetworkConfig()), faces(1, 128)
    assert_equal(engine(model, 1)(images.numpy()), reference(model, images, 1)[-1])


def test_tasks_of_the_last_iteration_can_be_chosen() -> None:
    model, images = network(SMALL), faces(2, 32).numpy()
    everything = engine(model, 2)(images)
    for name, pick in (("parsing", 0), ("landmarks", 1), ("emotion", 2)):
        found = engine(model, 2, [name])(images)
        for i, (one, all_) in enumerate(zip(outputs(found), outputs(everything), strict=True)):
            assert torch.equal(one, all_) if i == pick else one.shape[0] == 0


def test_many_faces_run_in_slices_and_one_alone_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifan.engine.engine._LARGEST_SLICE", 3 * 32 * 32)
    images, run = faces(7, 32).numpy(), engine(network(SMALL), 2)
    together = run(images)
    for i in range(7):
        alone = run(images[i : i + 1])
        for one, all_ in zip(outputs(alone), outputs(together), strict=True):
            assert torch.equal(one[0], all_[i])  # to the bit: what is found in a face does not depend on the others
    assert outputs(run(images[:0]))[0].shape == (0, 9, 32, 32)


def test_second_call_allocates_no_arena_and_repeats_the_first() -> None:
    run, images = engine(network(SMALL), 2), faces(2, 32).numpy()
    first = run(images)
    (plan,) = next(iter(run._plans.values()))
    where = address(plan.memory)
    run(images[::-1])
    again = run(images)
    (plan,) = next(iter(run._plans.values()))
    assert address(plan.memory) == where
    assert all(torch.equal(a, b) for a, b in zip(outputs(first), outputs(again), strict=True))


def test_threads_share_an_engine_and_any_number_of_threads_gives_the_same_bits() -> None:
    run, images = engine(network(SMALL), 2), faces(2, 32).numpy()
    expected, before, found = outputs(run(images)), torch.get_num_threads(), []
    callers = [threading.Thread(target=lambda: found.append(outputs(run(images)))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(outputs(run(images)))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 6
    assert all(torch.equal(a, b) for other in found for a, b in zip(expected, other, strict=True))


def test_callers_that_come_at_once_pack_a_weight_once() -> None:
    weights, found = PackedWeights(model_of(network(SMALL)), False), []

    def make() -> np.ndarray:
        time.sleep(0.01)  # long enough for the others to come
        return np.empty(1)

    callers = [threading.Thread(target=lambda: found.append(weights.keep("weight", make))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4
    assert len({address(value) for value in found}) == 1


@pytest.mark.parametrize("floats", [0, 1, 1 << 20])
def test_memory_is_zero_and_begins_with_a_huge_page(floats: int) -> None:
    memory = zeros(floats)
    assert memory.shape == (floats,)
    assert not memory.any()
    memory.fill(1)
    if hasattr(mmap, "MADV_HUGEPAGE") and floats:
        assert address(memory) % (1 << 21) == 0


def test_weights_are_copied() -> None:
    model, images = network(SMALL), faces(1, 32).numpy()
    run = engine(model, 1)
    expected = outputs(run(images))
    for parameter in model.parameters():
        parameter.data.zero_()
    assert all(torch.equal(a, b) for a, b in zip(expected, outputs(run(images)), strict=True))


def test_wrong_input_is_refused() -> None:
    run = engine(network(SMALL), 1)
    for images in (np.zeros((1, 3, 32, 32)), np.zeros((1, 3, 64, 64), np.uint8), np.zeros((3, 32, 32)), faces(1, 32)):
        with pytest.raises(ValueError, match=r"images: expected a numpy array \(N, 3, 32, 32\) uint8; got"):
            run(images)
    with pytest.raises(ValueError, match="iterations"):
        engine(network(SMALL), 0)
    with pytest.raises(ValueError, match=r"float32 network on the CPU; got torch\.float64"):
        engine(network(SMALL).double())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"points": np.zeros((1, 2, 5), np.float32)}, r"expected points \(2, 2, 5\) float32; got \(1, 2, 5\) float32"),
        (
            {"parsing_logits": np.zeros((2, 9, 64, 64), np.float32)},
            r"parsing_logits \(2, 9, 32, 32\) .*; got \(2, 9, 64",
        ),
        ({"points": np.zeros((2, 2, 5))}, r"expected points \(2, 2, 5\) float32; got \(2, 2, 5\) float64"),
        ({"class_logits": {"emotion": np.zeros((2, 6), np.float32)}}, r"expected class_logits\['emotion'\] \(2, 7\)"),
        ({"class_logits": {}}, r"expected class_logits of \['emotion'\]; got \[\]"),
    ],
    ids=["faces", "side", "dtype", "classes", "tasks"],
)
def test_what_cannot_begin_a_pass_is_refused(change: dict[str, Any], said: str) -> None:
    model, images = network(SMALL), faces(2, 32).numpy()
    begun = engine(model, 1)(images)
    for run in (engine(model, 1), TorchRunner(model)):
        with pytest.raises(ValueError, match=said) as error:
            run(images, replace(begun, **change))
        assert "\n" not in str(error.value)


def test_a_pass_that_begins_with_predictions_is_the_loops_next_one() -> None:
    model, images = network(SMALL), faces(3, 32).numpy()
    found = engine(model, 1)(images, engine(model, 1)(images))
    for one, other in zip(outputs(found), outputs(engine(model, 2)(images)), strict=True):
        assert float((one - other).abs().max()) < TOLERANCE * float(other.abs().max())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_constants_of_the_first_pass_are_what_the_network_computes(config: NetworkConfig) -> None:
    """In double precision; the kernels' error is that of float32."""
    model = network(config)
    found, memory = _first_constants(PackedWeights(model_of(model), False))
    exact = fold_training_extras(model).double()
    with torch.no_grad(), ops.use_backend("reference"):
        planes = exact.first_planes()
        stem = F.conv2d(planes, exact.stem_filters()[1], padding=3)
        groups = planes.split([t.planes for t in config.tasks], 1)
        encoded = [encoder(group) for encoder, group in zip(exact.encoders, groups, strict=True)]
    start = address(memory)
    views = [found.stem, found.planes, *(view for maps in found.encoded for view in maps)]
    for view, wanted in zip(views, [stem, planes, *(m for maps in encoded for m in maps)], strict=True):
        first = (view.address - start) // 4
        values = torch.from_numpy(memory[first : first + wanted.numel()]).view_as(wanted)
        assert float((values - wanted).abs().max()) <= 3e-6 * float(wanted.abs().max())
    assert all(view.stride == 0 for view in views[1:])


ALONE = """
import sys
from importlib.abc import MetaPathFinder
import numpy as np

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocked())
from ifan.engine.predictor import make_runner
from ifan.weights import load_model

model, images = load_model(sys.argv[1]), np.load(sys.argv[2])
runner = make_runner(model, iterations=1)
found = runner(images, runner(images))
np.savez(sys.argv[3], parsing=found.parsing_logits, points=found.points, emotion=found.class_logits["emotion"])
try:
    make_runner(model, "cuda")
except ImportError as error:
    print(error)
print("torch" in sys.modules)
"""


def test_without_pytorch_the_engine_finds_the_same(tmp_path: Path) -> None:
    model, images = network(SMALL), faces(2, 32).numpy()
    model.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "images.npy", images)
    arguments = [str(tmp_path / name) for name in ("model", "images.npy", "found.npz")]
    done = subprocess.run([sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused, loaded = done.stdout.splitlines()
    assert "device 'cuda'" in refused
    assert "pip install 'ifan[torch]'" in refused
    assert loaded == "False"
    run = engine(model, 1)
    with np.load(tmp_path / "found.npz") as found:
        for one, other in zip(found.values(), outputs(run(images, run(images))), strict=True):
            assert np.array_equal(one, other.numpy())


def test_the_native_engine_runs_what_it_can_and_pytorch_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(SMALL)
    assert isinstance(make_runner(model_of(model)), Engine)
    assert isinstance(make_runner(model, torch.device("cpu"), iterations=2), Engine)
    assert isinstance(make_runner(network(SMALL).double()), TorchRunner)
    with ops.use_backend("reference"):
        runner = make_runner(model_of(model), tasks=["landmarks"])
    assert isinstance(runner, TorchRunner)
    assert runner.tasks == ["landmarks"]
    monkeypatch.setattr("ifan.engine.predictor.cpu_refusal", lambda: "no compiler")
    assert isinstance(make_runner(model), TorchRunner)
    with pytest.raises(ValueError, match=r"with the native engine; got no compiler. Use 'fp32'"):
        make_runner(model, precision="bf16")
    monkeypatch.setitem(sys.modules, "ifan.torch_runner", None)
    with pytest.raises(
        ImportError, match=r"no compiler: this needs PyTorch: pip install .*; or install a C\+\+ compiler"
    ):
        make_runner(model)
