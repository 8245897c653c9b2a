"""The whole network: inference with random and with trained weights, and a training step on three datasets that label a
task each."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ifan import ops
from ifan.bench import rivals
from ifan.bench.problem import Case, Missing, Problem, Ready, Run, Setting, vector_error
from ifan.config import Config, NetworkConfig, load_config
from ifan.crop import Crop, crop_image
from ifan.cuda_graph import GraphRunner, in_bfloat16
from ifan.data.portrait import FACE, read_portrait
from ifan.export.graph import FeedbackGraph
from ifan.export.write import export, require
from ifan.layers import DenseHead
from ifan.network import IFAN, Predictions
from ifan.weights import load_model, load_network
from ifan.wiring import macs

BATCHES = (1, 8, 32)
TRAINED, TRAINED_BATCHES = ("ifan-128",), (1, 8)
"""Packaged weights that are measured on real faces: with random ones some rivals are slower than their users find."""
TRAINING = {"paper-64": 24, "paper-128": 12}
"""Preset and samples of a step, a third of them from each dataset."""

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.03}
"""Of each output's largest value. In float32 after all iterations; in bfloat16 after the first: with random weights,
what rounding does to its logits redraws the next planes, and after three nobody's are near the truth."""

DISTINCT = 2
"""Faces that differ in a batch; the rest repeat them, so that two faces' truth is enough to check all."""


def inference(quick: bool = False) -> list[Case]:
    """Every batch size in float32, and in bfloat16 where the processor has it."""
    size, iterations, batches = (32, 1, (1,)) if quick else (128, 3, BATCHES)
    config = NetworkConfig(size=size, iterations=iterations)
    cases = []
    for dtype in TOLERANCES:
        for batch in batches:
            build = partial(_inference, partial(random_network, config), partial(_images, size), config, batch, dtype)
            work = f"inference {iterations} iterations"
            flop = 2 * batch * iterations * shared_macs(config)
            moved = batch * size**2 * (3 + 4 * config.tasks[0].width)
            shape = f"{batch}x3x{size}x{size}"
            cases.append(Case("network", shape, work, build, moved, flop, dtype, needs_bf16=dtype == "bfloat16"))
    return cases


def trained() -> list[Case]:
    """The first iteration of packaged weights on crops of a face, as ``ifan export`` writes it."""
    cases = []
    for name in TRAINED:
        config = replace(load_model(name).config, iterations=1)
        size, task = config.image_size, config.tasks[0]
        for dtype in TOLERANCES:
            for batch in TRAINED_BATCHES:
                build = partial(_inference, partial(load_network, name), partial(_faces, size), config, batch, dtype)
                moved = batch * (3 * size**2 + 4 * task.width * config.size**2)
                shape = f"{name} {batch}x3x{size}x{size}"
                flop, bf16 = 2 * batch * shared_macs(config), dtype == "bfloat16"
                cases.append(Case("network", shape, "inference", build, moved, flop, dtype, needs_bf16=bf16))
    return cases


def training(quick: bool = False) -> list[Case]:
    """A step of each of the paper's presets: batch to updated weights, one iteration."""
    cases = []
    for preset, samples in TRAINING.items():
        config = load_config(preset)
        network = replace(config.network, size=32, iterations=1) if quick else config.network
        count = 12 if quick else samples
        counted = macs(network)
        once = sum(counted["shared"].values()) + sum(sum(counted[t.name].values()) for t in network.tasks) / 3
        shape = f"{preset}/{network.size}px {count}x3x{network.size}x{network.size}"
        build = partial(_training, replace(config, network=network), count)
        flop = round(2 * 3 * count * once)
        cases.append(Case("network", shape, "training step", build, 0, flop))
    return cases


def shared_macs(config: NetworkConfig) -> int:
    """Multiply-adds of one face's iteration with stem and re-encoders run once for all tasks."""
    counted = macs(config)
    stems = [groups["stem"] for task, groups in counted.items() if task != "shared"]
    return sum(sum(groups.values()) for groups in counted.values()) - sum(stems[1:])


def random_network(config: NetworkConfig) -> IFAN:
    """Random weights and statistics whose points stay near the middle of a pixel.

    Discs are rounded: a point near a half would make every rival jump, and no comparison could be made.
    """
    torch.manual_seed(0)
    network = IFAN(config).eval()
    for name, buffer in network.named_buffers():
        if "running_mean" in name:
            buffer.normal_(0, 0.3)
        elif "running_var" in name:
            buffer.uniform_(0.5, 2)
    if config.landmarks:
        centres = torch.randint(config.size // 4, 3 * config.size // 4, (2 * config.landmarks.width,))
        with torch.no_grad():
            found = network(_images(config.image_size, 1, 0), None, 1)[-1].points
            head = cast(DenseHead, network.landmark_head)
            head.weight *= 0.1 / config.size / float(found.abs().max().clamp_min(1e-9))
            head.bias.copy_(centres / config.size - 0.5)
    return network


def _images(size: int, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    few = torch.randint(0, 256, (min(batch, DISTINCT), 3, size, size), dtype=torch.uint8, generator=generator)
    return few.repeat(-(-batch // DISTINCT), 1, 1, 1)[:batch]


def _faces(size: int, batch: int, seed: int) -> Tensor:
    """Crops of the packaged portrait, each turned and as large as another draw says; as `_images` gives them."""
    portrait = read_portrait()
    draws = np.random.default_rng(seed).uniform(-1, 1, (min(batch, DISTINCT), 2))
    x, y, side = FACE
    crops = [Crop(x, y, side * (1 + 0.2 * larger), 15 * turned) for larger, turned in draws]
    few = torch.from_numpy(np.stack([crop_image(portrait, crop, size).transpose(2, 0, 1) for crop in crops]))
    return few.repeat(-(-batch // DISTINCT), 1, 1, 1)[:batch]


def _inference(
    make: Callable[[], IFAN],
    draw: Callable[[int, int], Tensor],
    config: NetworkConfig,
    batch: int,
    dtype: str,
    setting: Setting,
) -> Problem:
    """``draw``: images from a batch's size and a seed."""
    network = make().to(setting.device).eval()
    network.config = config
    images = [draw(batch, seed).to(setting.device) for seed in (1, 2)]
    head, bias = network.landmark_head, torch.zeros(())
    if isinstance(head, DenseHead) and dtype == "float32":
        bias = head.bias.detach().view(2, -1)
    names = FeedbackGraph(network, 1).outputs

    def outputs(found: Sequence[Tensor]) -> list[Tensor]:
        """Points less their bias, so that what is left is checked and not the constant; in bfloat16, where rounding the
        sum loses most of what is left, as they are."""
        return [v - bias.to(v.device) if n == "points" else v for n, v in zip(names, found, strict=True)]

    exact: dict[int, list[Tensor]] = {}

    def expected(i: int) -> list[Tensor]:
        if i not in exact:
            checked = 1 if dtype == "bfloat16" else config.iterations
            with torch.inference_mode(), ops.use_backend("reference"):
                found = network.double()(images[i][:DISTINCT], None, checked)[-1]
                network.float()
            repeated = [v.float().repeat(-(-batch // DISTINCT), *[1] * (v.dim() - 1))[:batch] for v in _listed(found)]
            exact[i] = outputs(repeated)
        return exact[i]

    expected(0)  # before anybody copies the network
    expected(1)
    makers: dict[str, Callable[[], Ready]] = {
        "ifan": lambda: _engine(network, images, dtype, setting, outputs),
        "eager": lambda: _graph(network, images, dtype, setting, outputs),
        "compile": lambda: rivals.compiled(partial(_compiled, network, images, dtype, setting, outputs), setting),
    }
    if setting.device == "cpu":
        feeds = [[value] for value in images]
        if dtype == "float32":
            makers["onnxruntime"] = lambda: _through(
                rivals.onnxruntime(_exported(network, setting, config.iterations), feeds, setting.threads), outputs
            )
        makers["openvino"] = lambda: _openvino(network, feeds, dtype, setting, outputs)
    return Problem(makers, expected, TOLERANCES[dtype])


Outputs = Callable[[Sequence[Tensor]], list[Tensor]]


def _listed(found: Predictions) -> list[Tensor]:
    return [found.parsing_logits, found.points, *found.class_logits.values()]


def _through(ready: Ready, outputs: Outputs) -> Ready:
    return Ready(lambda i: outputs(ready.run(i)), ready.note)


def _openvino(
    network: IFAN, feeds: Sequence[Sequence[Tensor]], dtype: str, setting: Setting, outputs: Outputs
) -> Ready:
    def loop(iterations: int, precision: str) -> Ready:
        graph = _exported(network, setting, iterations)
        return _through(rivals.openvino(graph, feeds, setting.threads, precision), outputs)

    if dtype == "float32":
        return loop(network.config.iterations, "f32")
    return replace(loop(network.config.iterations, "bf16"), check=loop(1, "bf16").run)


def _engine(network: IFAN, images: Sequence[Tensor], dtype: str, setting: Setting, outputs: Outputs) -> Ready:
    """The native engine; on a GPU the CUDA graphs of the network with the ops' fastest backends."""
    model = network if dtype == "float32" else in_bfloat16(network)

    def passes(iterations: int) -> Run:
        @torch.inference_mode()
        def run(i: int) -> list[Tensor]:
            return outputs([value.float() for value in _listed(model(images[i % 2], None, iterations)[-1])])

        return run

    steps, short = passes(network.config.iterations), dtype == "bfloat16"
    if setting.device == "cpu":
        from ifan.engine.engine import Engine
        from ifan.torch_runner import torch_predictions

        def loop(iterations: int, precision: str) -> Run:
            engine = Engine.from_network(network, iterations=iterations, precision=precision)
            return lambda i: outputs(_listed(torch_predictions(engine(images[i % 2].numpy()))))

        if dtype == "float32":
            return Ready(loop(network.config.iterations, "fp32"), "engine", steps=steps)
        try:
            return Ready(loop(network.config.iterations, "bf16"), "engine", check=loop(1, "bf16"), steps=steps)
        except ValueError as error:  # of the processor
            raise Missing(str(error)) from error
    if setting.ranges:
        return Ready(steps, "network, part by part", check=passes(1) if short else None)
    runner = GraphRunner(model)

    def replay(iterations: int) -> Run:
        return lambda i: outputs([value.float() for value in _listed(runner(images[i % 2], iterations))])

    check = replay(1) if short else None
    note = f"CUDA graph, backend {ops.current_backend()}"
    return Ready(replay(network.config.iterations), note, check=check, steps=steps)


class _Parts(NamedTuple):
    """Functions that run the image's share, an iteration and the drawing of its planes."""

    share: Callable[..., Any]
    iterate: Callable[..., Any]
    draw: Callable[..., Any]


def _graph(network: IFAN, images: Sequence[Tensor], dtype: str, setting: Setting, outputs: Outputs) -> Ready:
    model = FeedbackGraph(network).to(setting.device)
    run = _loop(model, _Parts(model.image_share, model.iterate, model.draw), images, dtype, setting, outputs)
    return Ready(run, "the exported graph, run by PyTorch")


def _compiled(
    network: IFAN, images: Sequence[Tensor], dtype: str, setting: Setting, outputs: Outputs, mode: str
) -> Run:
    """One compiled function an iteration instead of all in one: the same arithmetic, a third of the compile time."""
    model = FeedbackGraph(network).to(setting.device)
    whole: list[Any] = [model.image_share, model.iterate, model.draw]
    parts = _Parts(*(torch.compile(part, mode=mode, dynamic=False, fullgraph=True) for part in whole))
    return _loop(model, parts, images, dtype, setting, outputs)


def _loop(
    model: FeedbackGraph, parts: _Parts, images: Sequence[Tensor], dtype: str, setting: Setting, outputs: Outputs
) -> Run:
    """All iterations by these parts of the graph; gives the last one's outputs, in bfloat16 the first one's."""

    @torch.inference_mode()
    def run(i: int) -> list[Tensor]:
        with _autocast(setting.device, dtype):
            image, planes = parts.share(images[i % 2]), cast(Tensor, model.first)
            found = first = parts.iterate(image, planes.expand(image.shape[0], -1, -1, -1).contiguous(), later=False)
            for _ in range(model.iterations - 1):
                found = parts.iterate(image, parts.draw(found))
            return outputs([value.float() for value in (first if dtype == "bfloat16" else found)])

    return run


def _exported(network: IFAN, setting: Setting, iterations: int) -> Path:
    """The ONNX file that ``ifan export`` writes; made once for all batch sizes."""
    try:
        for package in ("onnx", "onnxscript"):
            require(package)
    except ValueError as error:
        raise Missing(str(error)) from error
    path = setting.folder / f"network{network.config.image_size}-{network.config.landmark_head}x{iterations}.onnx"
    if not path.exists():
        export(network, path, iterations)
    return path


def _autocast(device: str, dtype: str) -> contextlib.AbstractContextManager[None]:
    if dtype == "bfloat16":
        return torch.autocast(device, torch.bfloat16)
    return contextlib.nullcontext()


def _training(config: Config, samples: int, setting: Setting) -> Problem:
    """Without dropout, whose masks a compiler draws in its own way."""
    config = replace(config, network=replace(config.network, dropout=0.0))
    first: list[list[Tensor]] = []

    def expected(i: int) -> list[Tensor]:
        if not first:
            first.append([value.clone() for value in _trainee(config, samples, setting, "reference")(0)])
        return first[0]

    def compiled(mode: str) -> Run:
        return _trainee(config, samples, setting, "reference", mode)

    makers: dict[str, Callable[[], Ready]] = {
        "ifan": lambda: Ready(_trainee(config, samples, setting, "auto"), "Trainer.step"),
        "eager": lambda: Ready(_trainee(config, samples, setting, "reference"), "Trainer.step, reference ops"),
        "compile": lambda: rivals.compiled(compiled, setting),
    }
    return Problem(makers, expected, 2e-3, repeatable=False, error=_step_error)


def _step_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The worse error of the losses and of all gradients as one vector: in a zero one only rounding would differ."""
    return vector_error(*([x[0], torch.cat([value.flatten() for value in x[1:]])] for x in (found, expected)))


def _trainee(config: Config, samples: int, setting: Setting, backend: str, mode: str | None = None) -> Run:
    """Steps of a trainer on one batch, all trainers beginning alike; with ``mode`` network and loss are compiled as one
    graph."""
    from ifan.data import FaceDataset
    from ifan.data.mixture import Batch
    from ifan.data.toy import ToyFaces
    from ifan.training import RunOptions, Trainer

    kinds = {"mtfl": "landmarks", "celebamask": "parsing", "fer2013": "emotion"}
    sets: dict[str, FaceDataset] = {
        name: ToyFaces(samples, seed=i, size=64, tasks=[task]) for i, (name, task) in enumerate(kinds.items())
    }
    training = replace(
        config.training, batch_size=samples, shares=dict.fromkeys(sets, 1.0), iterations=(1.0,), precision="fp32"
    )

    def losses(batch: Batch) -> tuple[Tensor, Tensor]:
        result = trainer.hybrid_loss(trainer.model(batch.images, batch.lanes, 1)[-1], batch)
        return result.losses, result.counts

    options = RunOptions(loss_fn=torch.compile(losses, mode=mode, dynamic=False, fullgraph=True) if mode else None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        trainer = Trainer(replace(config, training=training), sets, Path(folder), setting.device, options=options)
    batch = trainer.mixture.batch(0)

    def step(i: int) -> list[Tensor]:
        """The tasks' losses, then all gradients."""
        with ops.use_backend(backend):
            result = trainer.step(batch)
        return [result.losses, *(p.grad for p in trainer.model.parameters() if p.grad is not None)]

    return step
