"""An exported folder: what it says, what it must not say, and that its graphs are the network's iterations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ifan import crop, refine
from ifan.cli.main import main
from ifan.config import EMOTIONS, PAPER_TASKS, PARSING_CLASSES, POINT_NAMES
from ifan.export.folder import export_folder
from ifan.faces import framing
from ifan.faces.detect import CenterFace
from tests.support.networks import SMALL, faces, network, outputs, reference

CONFIG = replace(SMALL, growth=4, block_layers=1, stem_channels=8, up_channels=16, iteration_norm="separate")
CARD = "---\nlicense: other\nlicense_name: research-use-only\n---\n# mine\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a card."""
    folder = tmp_path_factory.mktemp("weights") / "mine"
    network(replace(CONFIG, reframe=True)).save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `export_folder` makes of the saved model."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("export") / "new" / "face"
    written = export_folder(saved, folder)
    assert sorted(written) == sorted(file.name for file in folder.iterdir())
    return folder


def test_first_and_later_iterations(exported: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model, images = network(replace(CONFIG, reframe=True)), faces(3, 32)
    first, second = reference(model, images, 2)
    feeds = {"images": images.numpy()}
    for name, expected in (("first", first), ("later", second)):
        session = runtime.InferenceSession(exported / f"{name}.onnx")
        names = [output.name for output in session.get_outputs()]
        found = session.run(names, feeds)
        for actual, wanted in zip(found, outputs(expected), strict=True):
            assert np.abs(actual - wanted.numpy()).max() < 1e-5 * float(wanted.abs().max())
        feeds |= {f"begun_{name}": value for name, value in zip(names, found, strict=True)}


def test_about_says_what_the_code_does(exported: Path) -> None:
    about = json.loads((exported / "ifan.json").read_text(encoding="utf-8"))
    assert [task["classes"] for task in about["tasks"]] == [list(c) for c in (PARSING_CLASSES, POINT_NAMES, EMOTIONS)]
    assert about["tasks"][1]["mirrored"] == [1, 0, 2, 4, 3]
    assert (about["weights"], about["weights_license"], about["code_license"]) == (
        "mine",
        "research-use-only",
        "Apache-2.0",
    )
    assert (about["iterations"], about["reframe"], about["precision"]) == (3, True, "float32")
    assert about["crop"]["shrink_above"] == crop.SHRINK_ABOVE
    assert about["crop"]["box"]["margin"] == framing.FACE_MARGIN
    assert about["refinement"]["sides"] == list(refine.SIDES)
    assert about["detector"]["max_side"] == CenterFace().max_side
    assert "1711.06055" in about["citation"]


@pytest.mark.parametrize("name", ["first", "later"])
def test_no_local_path_and_the_same_words_in_the_metadata(exported: Path, name: str) -> None:
    onnx = pytest.importorskip("onnx")
    path = exported / f"{name}.onnx"
    model = onnx.load(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["ifan"]) == json.loads((exported / "ifan.json").read_text(encoding="utf-8"))
    assert all(not node.doc_string and not node.metadata_props for node in model.graph.node)
    data = path.read_bytes()
    for place in (Path(torch.__file__).parent, Path(crop.__file__).parent, exported):
        assert str(place).encode() not in data


def test_the_detector_takes_pictures_of_any_size(exported: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(exported / "detector.onnx")
    found = session.run(list(CenterFace.OUTPUTS), {"input.1": np.zeros((1, 3, 64, 96), np.float32)})
    assert [value.shape for value in found] == [(1, c, 16, 24) for c in (1, 2, 2, 10)]
    assert "MIT" in session.get_modelmeta().custom_metadata_map["license"]


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In OpenVINO's format, with iterations of its own; emotions alone, whose graph is written soonest."""
    openvino = pytest.importorskip("openvino")
    network(replace(CONFIG, tasks=PAPER_TASKS[2:])).save_pretrained(tmp_path / "mine")
    folder = tmp_path / "face"
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(folder), "--weights", str(tmp_path / "mine"), "--format", "openvino", "--iterations", "2"])
    assert not stopped.value.code
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.partition(": ")[0] for line in said) == sorted(str(file) for file in folder.iterdir())
    assert f"{folder / 'first.xml'}: images (N, 3, 32, 32) uint8 RGB -> emotion_logits" in said
    about = json.loads((folder / "ifan.json").read_text(encoding="utf-8"))
    assert (about["iterations"], about["later"]["file"]) == (2, "later.xml")
    graph = openvino.Core().read_model(folder / "later.xml")
    assert json.loads(graph.get_rt_info(["ifan"]).astype(str)) == about
    assert str(tmp_path) not in (folder / "later.xml").read_text(encoding="utf-8")


def test_weights_without_a_card_and_without_reframing(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    network(replace(CONFIG, tasks=PAPER_TASKS[2:])).save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "README.md").unlink(missing_ok=True)
    export_folder(tmp_path / "plain", tmp_path / "face", iterations=2)
    about = json.loads((tmp_path / "face" / "ifan.json").read_text(encoding="utf-8"))
    assert about["weights_license"].startswith("not stated")
    assert (about["refinement"], about["iterations"]) == (None, 2)
    assert about["later"]["inputs"] == ["images", "begun_emotion_logits"]


def test_unknown_format_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one of the endings \.onnx, \.xml; got '\.pt'"):
        export_folder(saved, tmp_path, ".pt")
