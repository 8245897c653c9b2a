from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ifan.ops import backend_status, encode_predictions
from ifan.ops.encode_predictions import _forward
from tests.support.cases import NATIVE, arrange, assert_compiles, assert_same_gradients, gradients, leaf, needs_cpu
from tests.support.tolerances import assert_close, assert_no_worse

BUILT = [row.name for row in backend_status() if row.available and row.name in ("reference", "cpu")]
BACKENDS = pytest.mark.parametrize("backend", NATIVE)


def naive(parsing: Tensor, points: Tensor, classes: Tensor, sizes: list[int], radius: int = 5) -> Tensor:
    """Pixel by pixel with Python's numbers, in float64."""
    batch, _, size, _ = parsing.shape
    planes = [parsing.double().exp() / parsing.double().exp().sum(1, keepdim=True)]
    discs = torch.zeros(batch, points.shape[2], size, size, dtype=torch.float64)
    for b in range(batch):
        for p in range(points.shape[2]):
            cx, cy = (round((float(v) + 0.5) * size) for v in points[b, :, p])
            for i in range(size):
                for j in range(size):
                    discs[b, p, i, j] = float((j - cx) ** 2 + (i - cy) ** 2 < radius**2)
    planes.append(discs)
    for group in classes.double().split(sizes, 1):
        probability = group.exp() / group.exp().sum(1, keepdim=True)
        planes.append(probability[:, :, None, None].expand(-1, -1, size, size))
    return torch.cat(planes, 1)


def predictions(dtype: torch.dtype = torch.float32, batch: int = 2, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    # Multiples of 1/32 put some centres exactly between two pixels, where rounding goes to the even one.
    points = torch.randint(-20, 21, (batch, 2, 5)) / 32
    return leaf(batch, 4, size, size, dtype=dtype), points.to(dtype), leaf(batch, 7, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("backend", NATIVE)
def test_forward_equals_pixel_loops(dtype: torch.dtype, layout: str, backend: str) -> None:
    if backend == "cpu" and dtype == torch.float64:
        pytest.skip("the kernel leaves float64 to the reference")
    parsing, points, classes = predictions(dtype)
    parsing = arrange(parsing, layout)
    planes = encode_predictions(parsing, points, classes, [3, 4], backend=backend)
    assert planes.dtype == dtype
    assert_close(planes, naive(parsing, points, classes.detach(), [3, 4]))
    assert torch.equal(planes[:, 4:9].double(), naive(parsing, points, classes.detach(), [3, 4])[:, 4:9])


@BACKENDS
def test_full_disc_has_69_pixels(backend: str) -> None:
    planes = encode_predictions(torch.zeros(1, 1, 32, 32), torch.zeros(1, 2, 1), torch.zeros(1, 0), [], backend=backend)
    assert int(planes[:, 1].sum()) == 69
    assert int(planes[0, 1, 16, 11:22].sum()) == 9


@BACKENDS
def test_x_goes_along_columns_and_rounding_is_half_to_even(backend: str) -> None:
    # (0.5 + 1/32 * 1) * 16 = 8.5 -> 8, (0.5 + 3/32) * 16 = 9.5 -> 10
    points = torch.tensor([[[1 / 32], [3 / 32]]])
    disc = encode_predictions(torch.zeros(1, 0, 16, 16), points, torch.zeros(1, 0), [], 1, backend=backend)[0, 0]
    assert disc.nonzero().tolist() == [[10, 8]]


@BACKENDS
def test_points_outside_draw_the_part_that_is_inside_and_nan_draws_nothing(backend: str) -> None:
    points = torch.tensor([[[-0.6, 5.0, math.nan], [0.0, 0.0, 0.0]]])
    discs = encode_predictions(torch.zeros(1, 0, 32, 32), points, torch.zeros(1, 0), [], backend=backend)[0]
    assert 0 < int(discs[0].sum()) < 69
    assert int(discs[1:].sum()) == 0


@pytest.mark.parametrize(
    ("classes", "points", "sizes"), [(0, 5, [7]), (3, 0, [7]), (3, 5, []), (0, 0, [2]), (3, 2, [1, 1])]
)
@pytest.mark.parametrize("batch", [0, 1, 3])
@BACKENDS
def test_absent_tasks_and_empty_batch(classes: int, points: int, sizes: list[int], batch: int, backend: str) -> None:
    parsing, heads = leaf(batch, classes, 8, 8, dtype=torch.float32), leaf(batch, sum(sizes), dtype=torch.float32)
    planes = encode_predictions(parsing, torch.zeros(batch, 2, points), heads, sizes, backend=backend)
    assert planes.shape == (batch, classes + points + sum(sizes), 8, 8)
    if planes.requires_grad:
        planes.sum().backward()  # of a softmax's sum, so all zeros
        assert_close(parsing.grad, torch.zeros_like(parsing), 64)


@pytest.mark.parametrize(
    "run",
    [
        lambda *a: encode_predictions(*a, backend="reference"),
        lambda *a: _forward(*a, 5, "reference"),
        pytest.param(lambda *a: encode_predictions(*a, backend="cpu"), marks=needs_cpu),
    ],
    ids=["eager", "op", "cpu"],
)
def test_gradient_of_random_upstream(run) -> None:  # type: ignore[no-untyped-def]
    parsing, points, classes = predictions()
    assert_same_gradients(
        lambda a, b: run(a, points, b, [3, 4]),
        lambda a, b: torch.cat(
            [
                a.exp() / a.exp().sum(1, keepdim=True),
                torch.zeros(2, 5, 16, 16),
                *[
                    (g.exp() / g.exp().sum(1, keepdim=True))[:, :, None, None].expand(-1, -1, 16, 16)
                    for g in b.split([3, 4], 1)
                ],
            ],
            1,
        ),
        [parsing, classes],
        terms=256,
    )


def test_gradcheck() -> None:
    parsing, points, classes = predictions(torch.float64, size=3)
    assert torch.autograd.gradcheck(
        lambda a, b: _forward(a, points, b, [3, 4], 1, "reference"), (parsing, classes), fast_mode=True
    )


def test_opcheck_and_one_graph() -> None:
    parsing, points, classes = predictions(size=6)
    for backend in BUILT:
        opcheck(_forward.registered, (parsing, points, classes, [3, 4], 2, backend))
    assert_compiles(lambda a, b: _forward(a, points, b, [3, 4], 2, "reference"), [parsing, classes])
    assert_compiles(lambda a, b: encode_predictions(a, points, b, [3, 4], 2), [parsing, classes])


def planes_and_gradients(
    parsing: Tensor, points: Tensor, classes: Tensor, backend: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    values = [value.detach().to(dtype).requires_grad_() for value in (parsing, classes)]

    def run(a: Tensor, b: Tensor) -> Tensor:
        return encode_predictions(a, points, b, [3, 4], backend=backend)

    return [run(*values).detach(), *gradients(run, values)]


@needs_cpu
@pytest.mark.parametrize("size", [1, 5, 33])
def test_kernel_writes_everything_and_is_no_less_exact_than_eager(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    parsing, points, classes = predictions(batch=3, size=size)
    exact, eager = (
        planes_and_gradients(parsing, points, classes, "reference", d) for d in (torch.float64, torch.float32)
    )
    empty, like = Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(Tensor, "new_empty", lambda x, *a, **k: empty(x, *a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda x, **k: like(x, **k).fill_(torch.nan))
    ours = planes_and_gradients(parsing, points, classes, "cpu")
    for a, b, c in zip(ours, eager, exact, strict=True):
        assert_no_worse(a, b, c)


@needs_cpu
def test_same_bits_for_any_number_of_threads_and_run() -> None:
    values, before, results = predictions(batch=5, size=67), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(planes_and_gradients(*values, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu
def test_float64_stays_with_the_reference() -> None:
    with pytest.raises(ValueError, match=r"backend 'cpu' cannot take this input: .*float64"):
        encode_predictions(*predictions(torch.float64), [3, 4], backend="cpu")


def test_autocast_leaves_the_dtype_alone() -> None:
    parsing, points, classes = predictions()
    with torch.autocast("cpu", torch.bfloat16):
        planes = encode_predictions(parsing, points, classes, [3, 4])
    assert torch.equal(planes, encode_predictions(parsing, points, classes, [3, 4]))


def test_bad_input_is_refused() -> None:
    parsing, points, classes = (value.detach() for value in predictions())
    for arguments, message in (
        ((parsing[0], points, classes, [3, 4]), "parsing_logits must be (B, K, S, S)"),
        ((parsing[..., :8], points, classes, [3, 4]), "square"),
        ((parsing, points[:1], classes, [3, 4]), "points must be (B, 2, P)"),
        ((parsing, points, classes, [3, 3]), "class_logits must be (B, sum(class_sizes)) = (2, 6); got (2, 7)"),
        ((parsing.int(), points, classes, [3, 4]), "floating point"),
        ((parsing, points, classes, [3, 4], -1), "radius"),
    ):
        with pytest.raises(ValueError, match=r"^encode_predictions: ") as error:
            encode_predictions(*arguments)
        assert message in str(error.value)
