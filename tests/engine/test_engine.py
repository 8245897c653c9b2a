from __future__ import annotations

import mmap
import threading
import time

import pytest
import torch
from torch import Tensor

from ifan.config import NetworkConfig
from ifan.engine.arena import zeros
from ifan.engine.engine import Engine
from ifan.engine.weights import PackedWeights
from ifan.ops import backends
from tests.support.networks import CONFIGS, SMALL, assert_equal, faces, network, outputs, reference

_MISSING = next(row for row in backends() if row.name == "cpu")
pytestmark = pytest.mark.skipif(not _MISSING.available, reason=f"native module: {_MISSING.reason}")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_iteration_equals_the_networks_from_the_same_planes(config: NetworkConfig) -> None:
    model, images = network(config), faces(2, config.image_size)
    first, second = reference(model, images, 2)
    assert_equal(Engine(model, 1)(images), first)
    planes = model.encode(first, 2)
    assert_equal(Engine(model).iterate(images, planes), second)


def test_the_whole_loop_feeds_back_what_it_predicted() -> None:
    """Discs are rounded, so the loop may jump; with these weights no centre lies near a half."""
    model, images = network(SMALL), faces(3, 32)
    assert_equal(Engine(model, 3)(images), reference(model, images, 3)[-1])


@pytest.mark.full
def test_at_128_pixels() -> None:
    model, images = network(NetworkConfig()), faces(1, 128)
    assert_equal(Engine(model, 1)(images), reference(model, images, 1)[-1])


def test_tasks_of_the_last_iteration_can_be_chosen() -> None:
    model, images = network(SMALL), faces(2, 32)
    everything = Engine(model, 2)(images)
    for name, pick in (("parsing", 0), ("landmarks", 1), ("emotion", 2)):
        found = Engine(model, 2, [name])(images)
        for i, (one, all_) in enumerate(zip(outputs(found), outputs(everything), strict=True)):
            assert torch.equal(one, all_) if i == pick else one.shape[0] == 0
        assert {n: len(r) for n, r in found.rows.items() if len(r)} == {name: 2}


def test_many_faces_run_in_slices_and_one_alone_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifan.engine.engine._LARGEST_SLICE", 3 * 32 * 32)
    model, images = network(SMALL), faces(7, 32)
    engine = Engine(model, 2)
    together = engine(images)
    assert together.rows["landmarks"].tolist() == list(range(7))
    for i in range(7):
        alone = engine(images[i : i + 1])
        for one, all_ in zip(outputs(alone), outputs(together), strict=True):
            assert torch.equal(one[0], all_[i])  # to the bit: what is found in a face does not depend on the others
    assert outputs(engine(images[:0]))[0].shape == (0, 9, 32, 32)


def test_second_call_allocates_no_arena_and_repeats_the_first() -> None:
    engine, images = Engine(network(SMALL), 2), faces(2, 32)
    first = engine(images)
    (plan,) = next(iter(engine._plans.values()))
    where = plan.memory.data_ptr()
    engine(faces(2, 32).flip(0))
    again = engine(images)
    (plan,) = next(iter(engine._plans.values()))
    assert plan.memory.data_ptr() == where
    assert all(torch.equal(a, b) for a, b in zip(outputs(first), outputs(again), strict=True))


def test_threads_share_an_engine_and_any_number_of_threads_gives_the_same_bits() -> None:
    engine, images = Engine(network(SMALL), 2), faces(2, 32)
    expected, before, found = outputs(engine(images)), torch.get_num_threads(), []
    callers = [threading.Thread(target=lambda: found.append(outputs(engine(images)))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(outputs(engine(images)))
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
    model, images = network(SMALL), faces(1, 32)
    engine = Engine(model, 1)
    expected = outputs(engine(images))
    for parameter in model.parameters():
        parameter.data.zero_()
    assert all(torch.equal(a, b) for a, b in zip(expected, outputs(engine(images)), strict=True))


def test_wrong_input_is_refused() -> None:
    engine = Engine(network(SMALL), 1)
    for images in (torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 32, 32)):
        with pytest.raises(ValueError, match=r"images: expected \(N, 3, 32, 32\) uint8; got"):
            engine(images)
    with pytest.raises(ValueError, match="iterations"):
        Engine(network(SMALL), 0)
    with pytest.raises(ValueError, match=r"float32 network on the CPU; got torch\.float64"):
        Engine(network(SMALL).double())
