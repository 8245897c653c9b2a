"""The runner of CUDA graphs on a CPU: only what stands between it and torch.cuda is replaced."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan import cuda_graph, ops
from ifan.config import NetworkConfig
from ifan.cuda_graph import CudaDevice, GraphRunner, in_bfloat16, tensors
from ifan.engine.predictor import make_runner
from ifan.network import IFAN, Lanes, Predictions
from ifan.ops import dispatch
from ifan.torch_runner import TorchRunner
from tests.support.pretended_gpu import FakeDevice, pretended_gpu

SIZE = 32
CONFIG = NetworkConfig(size=SIZE, iterations=2, growth=4, block_layers=2, stem_channels=8, up_channels=16)


@pytest.fixture
def network() -> IFAN:
    model = IFAN(CONFIG).eval()
    for name, buffer in model.named_buffers():
        if "running_mean" in name:
            buffer.normal_(0, 0.3)
        elif "running_var" in name:
            buffer.uniform_(0.5, 2)
    model.landmark_head.weight.data.mul_(1e-2)
    model.mean_points.uniform_(-0.3, 0.3)
    return model


def faces(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def eager(network: IFAN, images: Tensor, iterations: int = 2, tasks: list[str] | None = None) -> Predictions:
    names = tasks or [t.name for t in network.config.tasks]
    return network(images, Lanes.for_tasks(images.shape[0], network.config, names), iterations)[-1]


def assert_equal(found: Predictions, wanted: Predictions, count: int | None = None) -> None:
    """To the bit; ``wanted`` may hold more samples than ``count``."""
    for actual, expected in zip(tensors(found), tensors(wanted), strict=True):
        assert torch.equal(actual, expected[:count])


def test_order_of_warm_up_recording_and_replay(network: IFAN) -> None:
    device = FakeDevice()
    runner = GraphRunner(network, device=device)
    network.register_forward_pre_hook(lambda *_: device.log.append("run"))
    first, second = faces(2, 1), faces(2, 2)
    found = runner(first)
    assert device.log == ["run", "run", "capture", "run", "replay", "run"]
    before = [value.clone() for value in tensors(found)]
    again = runner(second)
    assert device.log[6:] == ["replay", "run"], "recorded once"
    # The images were in place before the replay, and the results were copied out after it.
    assert_equal(found, eager(network, first))
    assert_equal(again, eager(network, second))
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(found), strict=True))
    own = {value.untyped_storage().data_ptr() for value in tensors(device.recorded[0]) if value.numel()}
    assert not own & {value.untyped_storage().data_ptr() for value in (*tensors(found), *tensors(again))}


def test_every_batch_size_has_the_bits_of_the_network(network: IFAN, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "BUCKETS", (1, 2, 4))
    device = FakeDevice()
    runner = GraphRunner(network, device=device)
    for count in (1, 2, 4):
        assert_equal(runner(faces(count)), eager(network, faces(count)))
    filled = torch.cat([faces(3, 5), faces(4)[3:]])  # the fourth is still there from the call before
    assert_equal(runner(faces(3, 5)), eager(network, filled), 3)
    many = runner(faces(6, 3))
    assert_equal(Predictions(many.parsing_logits[:4], many.points[:4], {n: v[:4] for n, v in many.class_logits.items()},
                             {n: v[:4] for n, v in many.rows.items()}), eager(network, faces(6, 3)[:4]))  # fmt: skip
    assert many.rows["emotion"].tolist() == list(range(6))
    assert len(runner(faces(0)).points) == 0
    assert device.log.count("capture") == 3


def test_a_recording_for_each_number_of_iterations_and_backend(network: IFAN) -> None:
    device = FakeDevice()
    runner = GraphRunner(network, device=device)
    assert_equal(runner(faces(1)), eager(network, faces(1)))
    assert_equal(runner(faces(1), 3), eager(network, faces(1), 3))
    with ops.use_backend("reference"):
        assert_equal(runner(faces(1)), eager(network, faces(1)))
    assert device.log.count("capture") == 3


def test_an_iteration_from_planes(network: IFAN) -> None:
    device = FakeDevice()
    runner = GraphRunner(network, device=device)
    planes = network.encode(eager(network, faces(2), 1), 2)
    assert_equal(runner.iterate(faces(2), planes), eager(network, faces(2), 2))
    assert_equal(runner(faces(2)), eager(network, faces(2), 2))
    assert device.log.count("capture") == 2


def test_autocast_changes_nothing(network: IFAN) -> None:
    runner = GraphRunner(network, device=FakeDevice())
    with torch.autocast("cpu", torch.bfloat16):
        found = runner(faces(1))
    assert_equal(found, eager(network, faces(1)))


def test_tasks_of_the_last_iteration(network: IFAN) -> None:
    found = GraphRunner(network, tasks=["landmarks"], device=FakeDevice())(faces(2))
    assert_equal(found, eager(network, faces(2), tasks=["landmarks"]))
    assert (len(found.parsing_logits), len(found.points)) == (0, 2)


def test_the_recordings_used_last_are_kept(network: IFAN) -> None:
    device = FakeDevice()
    runner = GraphRunner(network, 1, device=device, most_graphs=2)
    for count in (1, 2, 1, 4, 1):  # 4 takes the place of 2
        runner(faces(count))
    assert device.log.count("capture") == 3
    runner(faces(2))
    assert device.log.count("capture") == 4
    assert len(runner._graphs) == 2


def test_threads_take_turns(network: IFAN) -> None:
    runner, found = GraphRunner(network, 1, device=FakeDevice()), dict[int, Predictions]()

    def call(seed: int) -> None:
        for _ in range(3):
            found[seed] = runner(faces(2, seed))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert_equal(found[seed], eager(network, faces(2, seed), 1))


def test_a_recording_that_fails_is_a_warning_once(network: IFAN, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Callable[[], Predictions]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    device = FakeDevice()
    monkeypatch.setattr(device, "capture", refuse)
    runner = GraphRunner(network, device=device)
    with pytest.warns(RuntimeWarning, match="inference is slower: operation not permitted"):
        assert_equal(runner(faces(2)), eager(network, faces(2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(runner(faces(2, 1)), eager(network, faces(2, 1)))


def test_wrong_input_is_refused(network: IFAN) -> None:
    runner = GraphRunner(network, device=FakeDevice())
    for images in (faces(1).float(), torch.zeros(1, 3, 64, 64, dtype=torch.uint8), faces(1).to("meta")):
        with pytest.raises(ValueError, match=r"expected \(N, 3, 32, 32\) uint8 on cpu; got"):
            runner(images)
    with pytest.raises(ValueError, match="iterations"):
        GraphRunner(network, 0, device=FakeDevice())
    with pytest.raises(ValueError, match="smile"):
        GraphRunner(network, tasks=["smile"], device=FakeDevice())


def test_bfloat16_weights_are_cast_once(network: IFAN) -> None:
    half, images = in_bfloat16(network), faces(2)
    assert network.stem.weight.dtype == torch.float32
    assert {p.dtype for n, p in half.named_parameters() if "norm" in n or n.startswith(("landmark", "class"))} == {
        torch.float32
    }
    found = GraphRunner(half, 1, device=FakeDevice())(images)
    assert_equal(found, eager(half, images, 1))
    assert found.parsing_logits.dtype == torch.bfloat16
    assert found.points.dtype == torch.float32
    for actual, expected in zip(tensors(found)[:3], tensors(eager(network, images, 1))[:3], strict=True):
        assert 0 < float((actual.float() - expected).norm()) < 0.03 * float(expected.norm())


@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
def test_nothing_that_is_recorded_waits(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_FASTEST_FIRST", ((backend, "meta"),))
    monkeypatch.setattr(dispatch, "_missing", lambda name: None)
    monkeypatch.setattr("ifan.ops.gpu.checked_on", lambda name: "a GPU")
    for key in list(dispatch._KERNELS):
        monkeypatch.setitem(dispatch._KERNELS, key, (lambda *inputs: None, lambda *inputs: False))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no device "meta"
    work: list[Callable[[], Predictions]] = []

    class Recorder(FakeDevice):
        def capture(self, run: Callable[[], Predictions]) -> Any:
            work.append(run)
            return run(), lambda: None

    with torch.device("meta"):
        model = IFAN(CONFIG).eval()
        images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    model = model if backend == "reference" else in_bfloat16(model)
    with pretended_gpu() as mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = GraphRunner(model, 3, device=Recorder())
        found = runner(images)
        assert not runner.failed
        assert found.parsing_logits.shape == (2, 9, SIZE, SIZE)
        mode.names.clear()
        work[0]()
    assert "convolution" in mode.names
    assert ("transition_up" in mode.names) == (backend == "triton"), mode.names


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.ones(1, device="cpu").to(x.device),
        lambda x: x[[0, 1]],
        lambda x: x.nonzero(),
    ],
    ids=["item", "bool", "mask", "to the host", "numbers from the host", "from the host", "list", "nonzero"],
)
def test_what_waits_is_noticed(work: Callable[[Tensor], Any]) -> None:
    with pretended_gpu():
        x = torch.ones(3)
        with pytest.raises(Exception, match=r"waits|moves|no data|data-independent"):
            work(x)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_runner_of_a_gpu_replays_graphs(network: IFAN, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "CudaDevice", lambda device: FakeDevice())
    monkeypatch.setattr("ifan.torch_runner.usable_device", torch.device)
    monkeypatch.setattr(IFAN, "to", lambda model, device: model)
    runner, crops = TorchRunner(network, "cuda", precision=precision), faces(3).numpy()
    assert isinstance(runner._graphs, GraphRunner)
    runner.device = torch.device("cpu")
    found, begun = runner(crops), runner(crops[:2], runner(crops[:2]))
    model = network if precision == "fp32" else in_bfloat16(network)
    padded = eager(model, torch.cat([faces(3), torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)]))
    assert torch.equal(torch.from_numpy(found.points), padded.points[:3])
    assert torch.equal(torch.from_numpy(found.parsing_logits), padded.parsing_logits[:3].float())
    if precision == "fp32":
        assert torch.equal(torch.from_numpy(begun.points), eager(model, faces(3)[:2], 3).points)


def test_precision_of_a_runner(network: IFAN) -> None:
    for make in (TorchRunner, make_runner):
        with pytest.raises(ValueError, match=r"precision: expected .*; got 'fp8'"):
            make(network, precision="fp8")
    with pytest.raises(ValueError, match=r"precision 'bf16': expected a GPU or the native engine; got cpu"):
        TorchRunner(network, precision="bf16")


def test_a_network_on_the_cpu_is_called_like_the_engine(network: IFAN) -> None:
    found = TorchRunner(network, tasks=["landmarks"])(faces(2).numpy())
    assert torch.equal(torch.from_numpy(found.points), eager(network, faces(2)).points)
    assert found.parsing_logits.shape == (0, 9, SIZE, SIZE)
    again = TorchRunner(network, iterations=1)
    begun = again(faces(2).numpy(), again(faces(2).numpy()))
    assert torch.equal(torch.from_numpy(begun.parsing_logits), eager(network, faces(2), 2).parsing_logits)


class Recorded:
    """Stands for torch.cuda's streams, events and graphs, and writes down what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.caller, self.own = self.stream("caller"), self.stream("own")

        @contextmanager
        def entered(name: str) -> Iterator[None]:
            self.calls.append(f"enter {name}")
            yield
            self.calls.append(f"leave {name}")

        def graph(graph: Any, pool: str, stream: Any, capture_error_mode: str) -> Any:
            return entered(f"graph in {pool} on {stream.name}, {capture_error_mode}")

        class Graph:
            def replay(graph) -> None:
                self.calls.append("replay")

        names = {
            "Stream": lambda device: self.own,
            "current_stream": lambda device: self.caller,
            "stream": lambda stream: entered(stream.name),
            "graph_pool_handle": lambda: "pool",
            "CUDAGraph": Graph,
            "graph": graph,
        }
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: self.calls.append(f"record on {stream.name}"))

    def stream(self, name: str) -> Any:
        class Stream:
            def wait_stream(stream, other: Any) -> None:
                self.calls.append(f"{name} waits for {other.name}")

        found = Stream()
        found.name = name  # type: ignore[attr-defined]
        return found


def test_streams_wait_for_one_another(network: IFAN, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    images = faces(1)
    predictions = eager(network, images)
    device = CudaDevice(torch.device("cuda"))

    def work() -> Predictions:
        recorded.calls.append("work")
        return predictions

    assert device.aside(work, images) is predictions
    ours = ["own waits for caller", "enter own", "work", "leave own", "caller waits for own", "record on own"]
    assert recorded.calls == ours + ["record on caller"] * len(tensors(predictions))
    recorded.calls.clear()
    held, replay = device.capture(work)
    assert held is predictions
    replay()
    graph = "graph in pool on own, thread_local"
    assert recorded.calls == [f"enter {graph}", "work", f"leave {graph}", "replay"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(network: IFAN) -> None:
    model = network.cuda()
    runner = GraphRunner(model)
    for seed in range(3):
        images = faces(3, seed).cuda()
        for actual, expected in zip(tensors(runner(images)), tensors(model(images)[-1]), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert not runner.failed
