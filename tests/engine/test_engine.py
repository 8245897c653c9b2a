from __future__ import annotations

import mmap
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ifan.config import NetworkConfig
from ifan.engine.arena import zeros
from ifan.engine.engine import Engine
from ifan.engine.weights import PackedWeights
from ifan.network import IFAN
from ifan.ops import backends
from ifan.torch_runner import TorchRunner, face_predictions
from tests.support.networks import CONFIGS, SMALL, assert_equal, faces, network, outputs, reference

_MISSING = next(row for row in backends() if row.name == "cpu")
pytestmark = pytest.mark.skipif(not _MISSING.available, reason=f"native module: {_MISSING.reason}")


def engine(model: IFAN, iterations: int | None = None, tasks: list[str] | None = None) -> Engine:
    return Engine.from_network(model, iterations=iterations, tasks=tasks)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_iteration_equals_the_networks_from_the_same_planes(config: NetworkConfig) -> None:
    model, images = network(config), faces(2, config.image_size)
    first, second = reference(model, images, 2)
    assert_equal(engine(model, 1)(images.numpy()), first)
    assert_equal(engine(model)(images.numpy(), face_predictions(first)), second)


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
    where = plan.memory.data_ptr()
    run(images[::-1])
    again = run(images)
    (plan,) = next(iter(run._plans.values()))
    assert plan.memory.data_ptr() == where
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
    weights, found = PackedWeights(network(SMALL), False), []

    def make() -> Tensor:
        time.sleep(0.01)  # long enough for the others to come
        return torch.empty(1)

    callers = [threading.Thread(target=lambda: found.append(weights.keep("weight", make))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4
    assert len({value.data_ptr() for value in found}) == 1


@pytest.mark.parametrize("floats", [0, 1, 1 << 20])
def test_memory_is_zero_and_begins_with_a_huge_page(floats: int) -> None:
    memory = zeros(floats)
    assert memory.shape == (floats,)
    assert not memory.count_nonzero()
    memory.fill_(1)
    if hasattr(mmap, "MADV_HUGEPAGE") and floats:
        assert memory.data_ptr() % (1 << 21) == 0


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
