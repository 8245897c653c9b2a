"""How kernels are started: on their tensors' device, and never with a grid or places that a GPU cannot count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ifan.kernels import cross_entropy, encode_predictions
from ifan.kernels.launch import MOST_BESIDE, launch
from torch import Tensor

from tests.gpu.tools.launches import Started, watched


class Kernel:
    """In place of a kernel: notes when it is started."""

    __name__ = "some_kernel"

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *_, **__: self.events.append(grid)


def test_a_kernel_starts_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    x = torch.zeros(1)

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        events.append(tensor)
        yield
        events.append("left")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    launch(Kernel(events), (2, 3), (x, x), 5, x)
    launch(Kernel(events), (0, 3), x)
    assert events == [x, (2, 3), "left"]


@pytest.mark.parametrize("grid", [(1, MOST_BESIDE + 1), (1, 1, MOST_BESIDE + 1)], ids=str)
def test_a_grid_that_no_gpu_takes_is_refused(grid: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"some_kernel: expected at most 65535 programs .* got \(1, "):
        launch(Kernel([]), grid, torch.zeros(1))
    launch(Kernel([]), (MOST_BESIDE + 1, 1), torch.zeros(1))


@pytest.mark.parametrize("classes", [11, 150])
def test_large_images_are_cut_along_the_axis_that_has_no_limit(classes: int) -> None:
    """Of 4,096 x 4,096 pixels, at 16 to 128 a program."""
    grids: list[tuple[int, ...]] = []

    def note(launched: Started) -> None:
        grids.append(launched.grid)

    with torch.device("meta"), watched(note):
        logits, labels = torch.empty(2, classes, 4096, 4096), torch.empty(2, 4096, 4096, dtype=torch.uint8)
        cross_entropy.cross_entropy(logits, labels, None, 0.1, 255, torch.empty_like(logits))
        small = logits[:, :, :512, :512]
        cross_entropy.upsampled_cross_entropy(small, labels, None, 0.1, torch.empty_like(small))
        points, none = torch.empty(2, 2, 0), torch.empty(2, 0)
        planes = encode_predictions.forward(logits, points, none, [], 5)
        encode_predictions.backward(planes, logits, points, none, [])
    assert len([grid for grid in grids if grid[0] > MOST_BESIDE]) >= 4


def test_places_beyond_32_bits_are_refused() -> None:
    logits, labels = torch.zeros(1, 2, 40_000, 1), torch.zeros(1, 30_000, 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="below 2\\^30, for places are counted in 32 bits; got 40000 and 30000"):
        cross_entropy.upsampled_cross_entropy(logits, labels, None, 0.1, torch.empty_like(logits))
