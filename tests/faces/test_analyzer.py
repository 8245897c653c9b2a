"""FaceAnalyzer: every kind of photo, boxes and framing, batches, places in the photo's own pixels."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import ifan
from ifan.crop import Crop, crop_image
from ifan.faces import FACE_MARGIN, CenterFace, Detection, Face, FaceAnalyzer, PhotoResult
from ifan.faces.framing import FACE_DROP
from ifan.weights import SavedModel

BOX = (30.0, 10.0, 60.0, 50.0)


def same(a: PhotoResult, b: PhotoResult) -> None:
    """Equal up to the rounding that another batch size brings."""
    assert a.size == b.size
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.box == right.box
        assert np.mean(left.parsing != right.parsing) < 1e-3
        np.testing.assert_allclose(list(left.landmarks.values()), list(right.landmarks.values()), atol=1e-3)
        for task, named in left.classes.items():
            np.testing.assert_allclose(list(named.values()), list(right.classes[task].values()), atol=1e-5)


def test_results_are_at_the_photos_resolution(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    result = analyzer(photo)
    assert (result.path, result.size, len(result)) == (None, (90, 60), 1)
    face = result[0]
    assert face.region == (0, 0, 90, 60)
    assert face.parsing.shape == (60, 90)
    assert face.parsing.dtype == np.uint8
    assert result.parsing.shape == (60, 90)
    assert face.parsing.max() < len(face.parsing_classes)
    assert list(face.landmarks) == list(ifan.config.POINT_NAMES)
    assert list(face.classes) == ["emotion", "smile"]
    assert all(np.isclose(sum(named.values()), 1, atol=1e-5) for named in face.classes.values())
    assert face.best("emotion")[1] == max(face.emotion.values())


def test_network_sees_what_the_crop_shows(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    """The same numbers as the network on a hand-made crop, and points mapped back by hand."""
    face = analyzer(photo, BOX)[0]
    side, drop = FACE_MARGIN * (30 * 40) ** 0.5, FACE_DROP * (30 * 40) ** 0.5
    assert (face.crop.cx, face.crop.cy) == (45, pytest.approx(30 + drop))
    assert face.crop.side == pytest.approx(side)
    crop = crop_image(photo, Crop(45, 30 + drop, side), 32)
    with torch.inference_mode():
        last = analyzer.model(torch.from_numpy(crop).permute(2, 0, 1)[None])[-1]
    x, y = (last.points[0, :, 0] * side + torch.tensor([45.0, 30 + drop])).tolist()
    assert face.landmarks["left_eye"] == pytest.approx((x, y), abs=1e-3)
    assert face.emotion["happy"] == pytest.approx(last.class_logits["emotion"].softmax(1)[0, 3].item(), abs=1e-6)


def test_parsing_lies_where_the_crop_lies(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    """The map of a face is the crop's map, moved and scaled: compare pixel centres."""
    face = analyzer(photo, BOX)[0]
    x0, y0, x1, y1 = face.region
    left, top = face.crop.cx - face.crop.side / 2, face.crop.cy - face.crop.side / 2
    assert (x0, y0) == (int(left), int(top))
    assert (x1, y1) == (int(np.ceil(left + face.crop.side)), int(np.ceil(top + face.crop.side)))
    crop = crop_image(photo, face.crop, 32)
    with torch.inference_mode():
        ids = analyzer.model(torch.from_numpy(crop).permute(2, 0, 1)[None])[-1].parsing_logits[0].argmax(0).numpy()
    ys, xs = np.mgrid[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3]
    scale = 32 / face.crop.side
    nearest = ids[((ys + 0.5 - top) * scale).astype(int), ((xs + 0.5 - left) * scale).astype(int)]
    assert np.mean(nearest == face.parsing[3 : y1 - y0 - 3, 3 : x1 - x0 - 3]) > 0.8


def test_photo_kinds_agree(analyzer: FaceAnalyzer, photo: np.ndarray, tmp_path: Path) -> None:
    path, picture = tmp_path / "a.png", Image.fromarray(photo)
    picture.save(path)
    grey = picture.convert("L")
    expected = analyzer(photo, BOX)
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    for kind in (path, str(path), path.read_bytes(), picture, tensor, photo[:, ::-1][:, ::-1]):
        same(analyzer(kind, BOX), expected)
    assert analyzer(path).path == str(path)
    same(analyzer(grey), analyzer(np.repeat(np.array(grey)[..., None], 3, 2)))
    same(analyzer(picture.convert("CMYK")), analyzer(np.array(picture.convert("CMYK").convert("RGB"))))


def test_whatever_holds_a_picture_is_taken(analyzer: FaceAnalyzer, photo: np.ndarray, tmp_path: Path) -> None:
    path, grey = tmp_path / "a.png", photo[..., 0]
    Image.fromarray(photo).save(path)
    expected = analyzer(photo, BOX)
    opened = io.BytesIO(path.read_bytes())
    opened.read()  # to its end: it is read from its beginning
    same(analyzer(opened, BOX), expected)
    with path.open("rb") as file:
        same(analyzer(file, BOX), expected)
    same(analyzer(np.dstack([photo, photo[..., :1]]), BOX), expected)
    for kind in (grey, grey[..., None], torch.from_numpy(np.ascontiguousarray(grey))):
        same(analyzer(kind, BOX), analyzer(np.repeat(grey[..., None], 3, 2), BOX))


def test_streams_give_streams(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    taken: list[int] = []
    analyzer.batch_size = 2
    stream = analyzer(taken.append(i) or photo for i in range(5))
    same(next(stream), analyzer(photo))
    assert taken == [0, 1]
    assert len(list(stream)) == 4
    assert len(analyzer({"a": photo, "b": photo}.values())) == 2
    with pytest.raises(ValueError, match="photo 3: expected"):
        list(analyzer(iter([photo, photo, 42])))
    with pytest.raises(ValueError, match="got an iterator"):
        analyzer(iter([photo]), [BOX])


def test_floats_are_told_what_to_do(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"float64\. Multiply by 255 and convert to uint8, values 0 to 255\.$"):
        analyzer(photo / 255)
    with pytest.raises(ValueError, match=r"got \(60, 90, 3\) uint16\. Convert it to uint8"):
        analyzer(photo.astype(np.uint16))
    with pytest.raises(ValueError, match="open it with mode 'rb'"):
        analyzer(io.StringIO("text"))


def test_pil_image_is_turned_upright(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(buffer, "PNG", exif=exif)
    assert analyzer(Image.open(buffer)).size == (60, 90)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(3, 4, 4),
        b"no picture",
        42,
    ],
    ids=["two-channels", "float", "empty", "batch", "float-tensor", "bytes", "number"],
)
def test_other_photos_are_refused_by_name(analyzer: FaceAnalyzer, photo: np.ndarray, bad: object) -> None:
    with pytest.raises(ValueError, match="photo 2: "):
        analyzer([photo, bad])


def test_batches_do_not_change_results(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    photos = [photo, photo[::-1].copy(), photo[:30], np.ascontiguousarray(photo[:, 20:])]
    boxes = [BOX, [BOX, (5, 5, 40, 40)], None, []]
    together = analyzer(photos, boxes)
    assert [len(result) for result in together] == [1, 2, 1, 0]
    analyzer.batch_size = 3
    for result, apart, single in zip(together, analyzer(photos, boxes), zip(photos, boxes, strict=True), strict=True):
        same(result, apart)
        same(result, analyzer(*single))


def exactly(faces: Sequence[Face]) -> list[tuple[object, ...]]:
    """All that was found of each face, to the bit."""
    return [(f.box, f.region, f.parsing.tobytes(), tuple(f.landmarks.items()), repr(f.classes)) for f in faces]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_photo_that_a_batch_cuts_keeps_its_own_faces(
    analyzer: FaceAnalyzer, photo: np.ndarray, batch_size: int
) -> None:
    """Photos of 2, 3 and 5 faces, no two alike, by ones and in streams, and with photos that nothing waits for."""
    boxes = [
        [(4.0 * i + 3 * j, 2.0 * j, 4.0 * i + 3 * j + 21 + i, 2.0 * j + 30 + j) for j in range(n)]
        for i, n in enumerate((2, 3, 5))
    ]
    photos = [photo, np.ascontiguousarray(photo[::-1]), np.ascontiguousarray(photo[:, ::-1])]
    expected = [exactly([analyzer(image, box)[0] for box in of]) for image, of in zip(photos, boxes, strict=True)]
    assert len({found[3] for faces in expected for found in faces}) == 10
    cut = FaceAnalyzer(analyzer.model, detector=None, batch_size=batch_size)
    assert [exactly(result.faces) for result in cut(photos, boxes)] == expected
    prepared = cut.prepare(photos, boxes, ["a", "b", "c"])
    for patience in (1, 2, None):
        predictions = cut.predict([prepared[0], None, prepared[1], None, None, prepared[2]], patience)
        assert [exactly(cut.faces(one, predictions)) for one in prepared] == expected


@pytest.mark.parametrize(
    "box",
    [
        (60, 10, 30, 50),
        (200, 200, 220, 220),
        (0, 0, 1e6, 1e6),
        (1, 2, 3),
        "abc",
        (0, 0, float("nan"), 5),
        (5, 5, 5.5, 9),
    ],
    ids=["order", "outside", "huge", "three", "text", "nan", "thin"],
)
def test_bad_boxes_name_the_photo(analyzer: FaceAnalyzer, photo: np.ndarray, box: object) -> None:
    with pytest.raises(ValueError, match=r"photo: .*box"):
        analyzer(photo, box)


def test_boxes_may_cross_the_border(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    result = analyzer(photo, (-10, -10, 20, 20))
    assert result[0].region[:2] == (0, 0)
    assert result.parsing.shape == (60, 90)
    assert not result.parsing[40:, 40:].any()


def test_number_of_boxes_must_be_that_of_the_photos(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one entry for each of the 2 photos; got 1"):
        analyzer([photo, photo], [BOX])


def test_chosen_tasks_and_iterations(photo: np.ndarray, analyzer: FaceAnalyzer) -> None:
    points = FaceAnalyzer(analyzer.model, tasks=["landmarks"])(photo, BOX)[0]
    assert (points.parsing, points.classes, len(points.landmarks)) == (None, {}, 5)
    same(
        FaceAnalyzer(analyzer.model, tasks="parsing")(photo, BOX),
        FaceAnalyzer(analyzer.model, tasks=["parsing"])(photo, BOX),
    )
    full = analyzer(photo, BOX)[0]
    np.testing.assert_allclose(list(points.landmarks.values()), list(full.landmarks.values()), atol=1e-3)
    once = FaceAnalyzer(analyzer.model, iterations=1)(photo, BOX)[0]
    assert once.emotion != full.emotion
    for options in (
        {"tasks": ["age"]},
        {"iterations": 0},
        {"batch_size": 0},
        {"margin": 0.0},
        {"device": "abacus"},
        {"detector": 7},
    ):
        with pytest.raises(ValueError, match=r"age|iterations|batch_size|margin|abacus|detector"):
            FaceAnalyzer(analyzer.model, **options)


def test_damaged_weights_are_not_passed_on(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    analyzer.model.landmark_head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="landmarks predictions are not finite"):
        FaceAnalyzer(analyzer.model)(photo, (10, 10, 50, 50))


def test_single_pixel_and_extreme_shapes(analyzer: FaceAnalyzer) -> None:
    for height, width in ((1, 1), (1, 500), (500, 2)):
        result = analyzer(np.full((height, width, 3), 99, np.uint8))
        assert result.parsing.shape == (height, width)
        assert result.plot().dtype == np.uint8


def test_load_reads_saved_weights(analyzer: FaceAnalyzer, photo: np.ndarray, tmp_path: Path) -> None:
    analyzer.model.save_pretrained(tmp_path / "model")
    loaded = ifan.load(tmp_path / "model", batch_size=2, detector=None)
    assert isinstance(loaded.model, SavedModel)
    assert isinstance(loaded, ifan.FaceAnalyzer)
    same(loaded(photo, BOX), analyzer(photo, BOX))
    with pytest.raises(ValueError, match="nowhere"):
        ifan.load("nowhere")


def test_load_without_packaged_weights_says_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ifan.weights.PACKAGED", tmp_path)
    with pytest.raises(ValueError, match=r"pass a saved model, a run, or a packaged name \(none\)"):
        ifan.load()


def test_save_writes_what_it_returns(analyzer: FaceAnalyzer, photo: np.ndarray, tmp_path: Path) -> None:
    files = analyzer(photo, BOX).save(tmp_path / "deep" / "er")
    assert [f.name for f in files] == ["photo_overlay.jpg", "photo_parsing.png", "photo.json"]
    assert sorted(files) == sorted((tmp_path / "deep" / "er").iterdir())
    assert cv2.imread(str(files[0])).ndim == 3


def test_faces_are_frozen(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    face: Face = analyzer(photo)[0]
    with pytest.raises(AttributeError):
        face.box = (0, 0, 1, 1)  # type: ignore[misc]
    with pytest.raises(ValueError, match="unknown classification 'age'"):
        face.best("age")


class OneFace:
    """A detector that finds the same tilted face everywhere."""

    def detect(self, images: list[np.ndarray]) -> list[list[Detection]]:
        points = ((30.0, 20.0), (50.0, 30.0), (36.0, 34.0), (22.0, 38.0), (40.0, 48.0))
        return [[Detection((20.0, 10.0, 60.0, 55.0), 0.9, points)] for _ in images]


def test_any_detector_frames_the_faces(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    found = FaceAnalyzer(analyzer.model, detector=OneFace())
    first, given = found([photo, photo], [None, BOX])
    assert (first[0].box, first[0].score) == ((20, 10, 60, 55), 0.9)
    assert first[0].crop.angle_deg == pytest.approx(26, abs=2)
    assert given[0].box == BOX
    assert given[0].score is None
    assert len(found([])) == 0


def test_batches_are_full_unless_photos_would_wait_too_long(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    """Faces a photo, and after how many photos which batches ran."""
    analyzer.batch_size = 4
    for counts, patience, expected in (
        ((3, 3, 0, 5, 1, 1), None, [(2, 4), (4, 4), (5, 4), (6, 1)]),
        ((1, 0, 0, 0, 2, 0, 0, 0), 3, [(3, 1), (6, 2)]),
        ((9, 1, 0, 0), 3, [(1, 4), (1, 4), (4, 2)]),
    ):
        ran, taken, real = [], [], analyzer.predictor

        def note(crops: np.ndarray, ran=ran, taken=taken, real=real) -> dict[str, np.ndarray]:
            ran.append((len(taken), len(crops)))
            return real(crops)

        boxes = [
            [(3.0 * i + 2 * j, 4.0 * j, 3.0 * i + 2 * j + 30, 4.0 * j + 25) for j in range(n)]
            for i, n in enumerate(counts)
        ]
        prepared = analyzer.prepare([photo] * len(counts), boxes, ["x"] * len(counts))
        analyzer.predictor = note
        found = list(analyzer.predict((taken.append(0) or (p if p.faces else None) for p in prepared), patience))
        assert ran == expected
        analyzer.predictor = real
        alone = [real(face[None])["landmarks"][0] for one in prepared for face in one.pixels]
        assert len({points.tobytes() for points in alone}) == sum(counts)
        np.testing.assert_array_equal([one["landmarks"] for one in found], alone)


def test_copies_for_other_processes_find_the_same(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    options = {"iterations": 1, "tasks": ["landmarks"], "batch_size": 3, "margin": 2.0}
    for detector in (CenterFace(256, min_score=0.6), OneFace(), None):
        made = FaceAnalyzer(analyzer.model, detector=detector, **options)
        copied = pickle.loads(pickle.dumps(made))
        assert (copied.batch_size, copied.margin, copied.iterations) == (3, 2.0, 1)
        assert type(copied.detector) is type(detector)
        same(copied([photo, photo], [None, BOX])[1], made(photo, BOX))
    assert repr(pickle.loads(pickle.dumps(CenterFace(256, 0.6)))) == repr(CenterFace(256, 0.6))


def test_runs_spell_the_parsing_map(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    face = analyzer(photo, BOX)[0]
    runs = face.to_dict(runs=True)["parsing"]["runs"]
    np.testing.assert_array_equal(np.repeat(runs[::2], runs[1::2]).reshape(face.parsing.shape), face.parsing)
    assert "runs" not in face.to_dict()["parsing"]


def test_real_supervision_takes_the_faces(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    result = analyzer(photo, [BOX, BOX])
    made = result.to_supervision()
    assert len(made) == 2
    assert made[made.confidence > 0.5].xyxy.tolist() == [list(BOX)] * 2
    assert made[0].data["landmarks"].shape == (1, 5, 2)
    assert made.mask.shape == (2, 60, 90)
    assert made["class_name"].tolist() == [face.best("emotion")[0] for face in result]
    assert len(analyzer(photo, []).to_supervision()) == 0


def test_supervision_is_optional(analyzer: FaceAnalyzer, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        analyzer(photo).to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    made = analyzer(photo, [BOX, BOX]).to_supervision()
    assert made.xyxy.tolist() == [list(BOX)] * 2
    assert made.data["landmarks"].shape == (2, 5, 2)
    assert len(made.data["emotion"]) == 2
    assert made.class_id.tolist() == [
        list(face.emotion).index(face.best("emotion")[0]) for face in analyzer(photo, [BOX, BOX])
    ]
    assert made.tracker_id is None
    points = FaceAnalyzer(analyzer.model, tasks="landmarks")(photo, BOX).to_supervision()
    assert (points.mask, points.class_id.tolist(), points.data["class_name"].tolist()) == (None, [0], ["face"])
