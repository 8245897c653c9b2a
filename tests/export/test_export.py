"""The exported graph against the network: every output, several batch sizes, each iteration from the same start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ifan.bench.rivals import openvino_core
from ifan.cli.main import main
from ifan.config import PAPER_TASKS, NetworkConfig, TaskConfig
from ifan.export.graph import FeedbackGraph
from ifan.export.write import export, write
from ifan.network import IFAN, Predictions
from tests.support.networks import CONFIGS, SMALL, assert_equal, faces, network, outputs, reference

TINY = replace(SMALL, growth=4, block_layers=1, stem_channels=8, up_channels=16, iterations=2, image_scale=1 / 64)
"""Every kind of layer, few nodes; with what only training needs, which is folded away."""

NAMES = ("parsing_logits", "points", "emotion_logits", "smile_logits")

TOLERANCE = 1e-5


def as_predictions(model: IFAN, names: tuple[str, ...], found: list[Tensor]) -> Predictions:
    """The graph's outputs in the network's form."""
    named, config, batch = dict(zip(names, found, strict=True)), model.config, found[0].shape[0]
    empty = Predictions(torch.empty(0, 0, 0, 0), torch.empty(0, 2, 0), {}, {})
    return replace(
        empty,
        parsing_logits=named.get("parsing_logits", torch.empty(0, 0, config.size, config.size)),
        points=named.get("points", torch.empty(0, 2, 0)),
        class_logits={t.name: named[f"{t.name}_logits"] for t in config.classifications},
        rows={t.name: torch.arange(batch) for t in config.tasks},
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_graph_equals_the_network_from_the_same_predictions(config: NetworkConfig) -> None:
    model, images = network(config), faces(2, config.image_size)
    graph = FeedbackGraph(model, 1)
    first, second = reference(model, images, 2)
    assert_equal(as_predictions(model, graph.outputs, list(graph(images))), first)
    planes = model.encode(first, 2)
    torch.testing.assert_close(graph.draw(graph(images)), planes, rtol=1e-4, atol=1e-5)
    assert_equal(as_predictions(model, graph.outputs, list(graph.iterate(graph.image_share(images), planes))), second)
    assert_equal(as_predictions(model, graph.outputs, list(graph(images, graph(images)))), second)


def test_the_whole_loop_and_the_networks_mode() -> None:
    model, images = network(SMALL).train(), faces(3, 32)
    found = FeedbackGraph(model)(images)
    assert model.training
    assert all(module.training for module in model.modules())
    expected = outputs(reference(model.eval(), images, 3)[-1])
    for actual, wanted in zip(found, expected, strict=True):
        assert float((actual - wanted).abs().max()) < TOLERANCE * float(wanted.abs().max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[IFAN, Path, Path]:
    """A network and its graph as ONNX: the loop, and an iteration from given planes."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("export")
    tasks = (*PAPER_TASKS, TaskConfig("smile", "classification", ("yes", "no")))
    model = network(replace(TINY, normalise_heads=True, tasks=tasks)).train()
    names = export(model, folder / "loop.onnx")
    assert names == NAMES
    write(FeedbackGraph(model), folder / "iteration.onnx", later=True, metadata={"ifan": "about"})
    assert model.training
    return model.eval(), folder / "loop.onnx", folder / "iteration.onnx"


def assert_parity(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) == 4
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.shape == wanted.shape
        assert float((actual - wanted).abs().max()) < TOLERANCE * float(wanted.abs().max())


@pytest.mark.parametrize("batch", [1, 7])
def test_onnx_runtime_gives_the_networks_outputs(exported: tuple[IFAN, Path, Path], batch: int) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model, loop, iteration = exported
    images = faces(batch, 32)
    first, second = reference(model, images, 2)
    begun = {f"begun_{name}": value.numpy() for name, value in zip(NAMES, outputs(first), strict=True)}
    for path, feed in (
        (loop, {"images": images.numpy()}),
        (iteration, {"images": images.numpy(), **begun}),
    ):
        session = runtime.InferenceSession(path)
        assert tuple(output.name for output in session.get_outputs()) == NAMES
        assert_parity([torch.from_numpy(v) for v in session.run(None, feed)], outputs(second))


@pytest.mark.parametrize("batch", [1, 7])
def test_openvino_gives_the_networks_outputs(exported: tuple[IFAN, Path, Path], batch: int) -> None:
    pytest.importorskip("openvino")
    model, loop, iteration = exported
    images = faces(batch, 32)
    first, second = reference(model, images, 2)
    feeds = ((loop, [images.numpy()]), (iteration, [value.numpy() for value in (images, *outputs(first))]))
    for path, feed in feeds:
        compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled(feed)
        assert_parity([torch.from_numpy(found[output].copy()) for output in compiled.outputs], outputs(second))


def test_openvino_file(exported: tuple[IFAN, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``ifan export`` to OpenVINO's own format, from a saved model."""
    pytest.importorskip("openvino")
    model, _, _ = exported
    model.save_pretrained(tmp_path / "model")
    target = tmp_path / "new" / "face.xml"
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(target), "--weights", str(tmp_path / "model"), "--iterations", "1"])
    assert not stopped.value.code
    assert "images (N, 3, 32, 32) uint8 RGB -> parsing_logits, points" in capsys.readouterr().out
    compiled = openvino_core().compile_model(target, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = faces(3, 32)
    found = compiled([images.numpy()])
    expected = outputs(reference(model, images, 1)[-1])
    assert_parity([torch.from_numpy(found[output].copy()) for output in compiled.outputs], expected)
    assert target.with_suffix(".bin").stat().st_size > 4 * 10_000  # float32, not compressed


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file name ending in \.onnx or \.xml; got '\.pt'"):
        export(network(TINY), tmp_path / "face.pt")
    with pytest.raises(ValueError, match="iterations: expected at least 1; got 0"):
        export(network(TINY), tmp_path / "face.onnx", 0)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"ifan export needs onnxscript: pip install 'ifan\[export\]'"):
        export(network(TINY), tmp_path / "face.onnx")
