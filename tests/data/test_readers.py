"""Each reader on a fixture in its dataset's true layout, labels and sides included."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ifan.config import (
    EMOTIONS,
    IGNORE,
    PARSING_CLASSES,
    POINT_NAMES,
    POINT_NAMES_68,
    NetworkConfig,
    TaskConfig,
    mirrored,
)
from ifan.crop import box_around
from ifan.data import DATASETS, DataError, open_dataset
from ifan.data.dataset import hold_out, official_split, three_way
from ifan.data.labels import (
    CELEBAMASK,
    FER2013,
    LAPA,
    MTFL_ATTRIBUTES,
    POINTS_68,
    POINTS_106,
    POINTS_194,
    five_points,
)
from ifan.data.mtfl import offset
from ifan.data.targets import TargetMap
from tests.support import dataset_layouts as layouts

FIVE = np.array([[20, 24], [41, 25], [31, 35], [23, 45], [39, 46]], np.float32)
WRITERS: dict[str, Callable[[Path], Path]] = {
    "mtfl": layouts.mtfl,
    "celebamask": layouts.celebamask,
    "fer2013": layouts.fer2013_folders,
    "helen": layouts.helen,
    "lapa": layouts.lapa,
    "300w": layouts.pts,
    "helen194": layouts.helen194,
    "rafdb": lambda root: layouts.folders(root, ("1", "7"), ("train", "test")),
    "affectnet": lambda root: layouts.folders(root, ("0", "6", "7"), ("train", "val")),
    "folders": lambda root: layouts.folders(root, ("anger", "Happy", "contempt"), ("train", "val", "test")),
    "points": layouts.points_table,
    "photo_emotions": lambda root: layouts.folders(root, ("angry", "neutral"), (".",), each=20),
}


def class_named(name: str) -> int:
    return PARSING_CLASSES.index(name)


@pytest.mark.parametrize("name", DATASETS)
def test_every_reader_keeps_the_protocol(tmp_path: Path, name: str) -> None:
    root = WRITERS[name](tmp_path)
    dataset = open_dataset(name, root, "train")
    sample = dataset[0]
    assert dataset.name == name
    assert len(dataset) >= 1
    assert dataset.tasks == frozenset(dataset.classes)
    assert sample.image.dtype == np.uint8
    assert sample.image.shape[2] == 3
    assert ("parsing" in dataset.tasks) == (sample.parsing is not None)
    assert ("landmarks" in dataset.tasks) == (sample.points is not None)
    if sample.parsing is not None:
        assert sample.parsing.shape == sample.image.shape[:2]
        assert sample.parsing.dtype == np.uint8
    assert dataset.labels_of(0) == sample.labels
    assert set(sample.labels) == set(dataset.tasks) - {"parsing", "landmarks"}
    keys = [[d[i].key for i in range(len(d))] for d in (open_dataset(name, root, s) for s in ("train", "test"))]
    assert not set(keys[0]) & set(keys[1])


MARGINS = {"fer2013": 1.3, "rafdb": 1.3, "affectnet": 1.3, "folders": 1.3, "photo_emotions": 0.65}
"""Where pictures end with the face, or show more than other datasets' boxes do, crops are wider or closer."""


@pytest.mark.parametrize("name", DATASETS)
def test_faces_are_framed_alike_in_every_dataset(tmp_path: Path, name: str) -> None:
    dataset = open_dataset(name, WRITERS[name](tmp_path), "train")
    sample = dataset[0]
    height, width = sample.image.shape[:2]
    x0, y0, x1, y1 = sample.box or (0, 0, width, height)
    emotion = TaskConfig("emotion", "classification", EMOTIONS)
    crop = TargetMap(dataset, NetworkConfig(size=32, tasks=(emotion,))).base_crop(sample)
    assert crop.side == pytest.approx(MARGINS.get(name, 1.0) * max(x1 - x0, y1 - y0))
    assert (crop.cx, crop.cy) == ((x0 + x1) / 2, (y0 + y1) / 2)


def test_splits_do_not_depend_on_the_order_of_the_names() -> None:
    """Of three ways of going through them; sets of texts are another one in every process."""
    names = [f"face {i}" for i in range(60)]
    for listed in (names[::-1], names[30:] + names[:30], sorted(names, key=lambda name: name[::-1])):
        assert hold_out(listed, 0.2) == hold_out(names, 0.2)
        for split in ("train", "val", "test"):
            records = dict.fromkeys(names, 0)
            assert three_way(dict.fromkeys(listed, 0), split).keys() == three_way(records, split).keys()
            assert (
                official_split(dict.fromkeys(listed, 0), {}, split).keys() == official_split(records, {}, split).keys()
            )


def test_splits_are_the_same_in_every_process() -> None:
    program = """
from ifan.data.dataset import three_way
print([list(three_way({f"face {i}": i for i in range(60)}, split)) for split in ("val", "test")])
"""
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    val, test = ast.literal_eval(found[0])
    assert (len(val), len(test)) == (6, 6)
    assert not set(val) & set(test)


HELD, THREE_WAY = ["face 04", "face 19"], [["face 06", "face 19"], ["face 02", "face 04"]]


def test_splits_stay_what_they_are() -> None:
    """Figures of different versions are of the same faces."""
    faces = dict.fromkeys((f"face {i:02}" for i in range(20)), 0)
    assert sorted(hold_out(faces)) == HELD
    assert [list(three_way(faces, split)) for split in ("val", "test")] == THREE_WAY
    assert [list(official_split(faces, {"x": 0}, split)) for split in ("val", "test")] == [HELD, ["x"]]
    assert list(official_split(faces, {}, "train")) == [face for face in faces if face not in HELD]


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        (POINTS_68, [38.5, 44.5, 30, 48, 54]),
        (POINTS_106, [69.5, 78.5, 54, 84, 90]),
        (POINTS_194, [123.5, 143.5, np.nan, 58, 72]),
    ],
)
def test_five_points_of_a_markup(markup: tuple[tuple[int, ...], ...], expected: list[float]) -> None:
    """Of points that are their own numbers; and of the same, seen in a mirror."""
    numbers = np.arange(200.0)
    found = five_points(np.stack([numbers, -numbers], 1), markup)
    np.testing.assert_allclose(found, np.stack([expected, -np.array(expected)], 1))
    mirrored_ones = five_points(np.stack([-numbers, numbers], 1), markup)
    np.testing.assert_allclose(mirrored_ones[:, 1], np.array(expected)[[1, 0, 2, 4, 3]])


def test_mtfl_labels_and_sides(tmp_path: Path) -> None:
    layouts.mtfl(tmp_path)
    train, val, test = (open_dataset("mtfl", tmp_path, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (18, 2, 2)
    sample = train[0]
    assert sample.key == "lfw_5590/Person_0000.jpg"
    assert sample.points is not None
    assert np.allclose(sample.points, layouts.POINTS - 0.5), "the files count from 1 at a pixel's centre"
    left, right = POINT_NAMES.index("left_eye"), POINT_NAMES.index("right_eye")
    assert sample.points[left, 0] < sample.points[right, 0], "left is the picture's left"
    names = {task: MTFL_ATTRIBUTES[task][label] for task, label in sample.labels.items()}
    assert names == {"gender": "female", "smile": "smiling", "glasses": "no_glasses", "pose": "right"}


@pytest.mark.parametrize(("original", "side"), [((100, 80), 64), ((65, 64), 64), ((90, 390), 64), ((64, 40), 64)])
def test_mtfl_pictures_shrunk_with_their_coordinates(tmp_path: Path, original: tuple[int, int], side: int) -> None:
    """(height, width) shrunk to ``side``, points as pixels that count from 0: ours are the original's, shrunk."""
    shrink = side / max(original)
    rng = np.random.default_rng(max(original))
    points = 0.25 * rng.integers(40, 4 * min(original), (5, 2))
    image = layouts.picture(0)[: round(original[0] * shrink), : round(original[1] * shrink)]
    root = layouts.mtfl(tmp_path)
    line = layouts.mtfl_line("lfw_5590\\Person_0001.jpg", points=(points + 0.5) * shrink - 0.5)
    (root / "training.txt").write_text(line)
    layouts.save(root / "lfw_5590/Person_0001.jpg", image)
    sample = open_dataset("mtfl", root, "train")[0]
    assert sample.points is not None
    assert np.allclose(sample.points, (points - 0.5) * shrink, atol=1e-4)


def test_mtfl_coordinates_on_no_such_grid() -> None:
    points = np.array([[20.123457, 24.654321], [41, 25], [31.7, 35.1], [23.3, 45.45], [39.9, 46.51]])
    assert offset(points, (150, 150)) == 0.5


def test_celebamask_classes_and_sides(tmp_path: Path) -> None:
    dataset = open_dataset("celebamask", layouts.celebamask(tmp_path, tuple(range(20))), "train")
    sample = dataset[0]
    assert sample.parsing is not None
    ids = layouts.face_ids()
    for i, name in enumerate(CELEBAMASK.values()):
        expected = IGNORE if name is None else class_named(name)
        assert (sample.parsing[ids == i] == expected).all(), name
    # Left is the person's left: id 4 (l_eye) lies at larger x. Both eyes are one class here.
    assert np.mean(np.nonzero(ids == list(CELEBAMASK).index("l_eye"))[1]) > 24
    assert sample.parsing[50, 42] == sample.parsing[50, 18] == class_named("eye")


def test_celebamask_parts_equal_the_index_map(tmp_path: Path) -> None:
    whole = open_dataset("celebamask", layouts.celebamask(tmp_path / "a", tuple(range(20))), "train")[0]
    parts = open_dataset("celebamask", layouts.celebamask_parts(tmp_path / "b", tuple(range(20))), "train")[0]
    assert whole.parsing is not None
    assert parts.parsing is not None
    assert np.array_equal(parts.parsing[::2, ::2], whole.parsing)
    assert parts.parsing.shape == parts.image.shape[:2] == (128, 128)


def test_celebamask_parts_overlap_in_the_authors_order(tmp_path: Path) -> None:
    root = layouts.celebamask_parts(tmp_path, tuple(range(20)))
    everything = np.full((64, 64, 3), 255, np.uint8)
    for path in (root / "CelebAMask-HQ-mask-anno" / "0").glob("*_hair.png"):
        layouts.save(path, everything)
        layouts.save(path.with_name(path.name.replace("hair", "hat")), np.zeros_like(everything))
    sample = open_dataset("celebamask", root, "train")[0]
    assert sample.parsing is not None
    # Hair is drawn late: only earrings, necklace, neck and cloth come after it.
    assert sample.parsing[50, 18] == class_named("hair")


def test_celebamask_partition_by_the_mapping_file(tmp_path: Path) -> None:
    root = layouts.celebamask(tmp_path)
    lines = ["idx orig_idx orig_file", "0 119613 119614.jpg", "26 170000 170001.jpg", "1503 199999 200000.jpg"]
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(lines))
    keys = [open_dataset("celebamask", root, split)[0].key for split in ("train", "val", "test")]
    assert keys == ["0", "26", "1503"]


@pytest.mark.parametrize("write", [layouts.fer2013_folders, layouts.fer2013_csv])
def test_fer2013_both_layouts(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    root = write(tmp_path)
    for split in ("train", "val", "test"):
        dataset = open_dataset("fer2013", root, split)
        assert len(dataset) == 7
        found = {EMOTIONS[dataset[i].labels["emotion"]]: dataset[i].image for i in range(7)}
        for i, name in enumerate(FER2013):
            assert np.array_equal(found[name], np.repeat(layouts.fer_face(i)[..., None], 3, 2))


def test_fer2013_csv_itself_and_folders_called_train_and_test(tmp_path: Path) -> None:
    layouts.fer2013_csv(tmp_path / "a")
    assert len(open_dataset("fer2013", tmp_path / "a" / "fer2013.csv", "val")) == 7
    for usage, upper in (("Training", "train"), ("PublicTest", "test"), ("PrivateTest", "test")):
        layouts.save(tmp_path / "b" / upper / "fear" / f"{usage}_7.jpg", layouts.fer_face(1))
    keys = [open_dataset("fer2013", tmp_path / "b", split)[0].key for split in ("train", "val", "test")]
    assert keys == ["Training/fear/7", "PublicTest/fear/7", "PrivateTest/fear/7"]


def test_helen_adds_merged_maps_before_the_largest_wins(tmp_path: Path) -> None:
    root = layouts.helen(tmp_path)
    keys = [open_dataset("helen", root, split)[0].key for split in ("train", "val", "test")]
    assert keys == ["1000_1", "1001_1", "1002_1"]
    sample = open_dataset("helen", root, "train")[0]
    assert sample.parsing is not None
    found = {(y, x): PARSING_CLASSES[sample.parsing[y, x]] for y, x in ((21, 20), (21, 40), (27, 20), (27, 40))}
    assert list(found.values()) == ["brow", "brow", "eye", "eye"]
    assert sample.parsing[50, 31] == class_named("eye"), "80 + 75 of the eyes beat 100 of a brow"
    assert sample.parsing[0, 0] == class_named("background")
    assert sample.box is not None
    x0, y0, x1, y1 = sample.box
    assert x1 - x0 == pytest.approx(y1 - y0)
    assert (x0 + x1) / 2 == pytest.approx((18 + 46) / 2)


def test_lapa_labels_points_and_box(tmp_path: Path) -> None:
    sample = open_dataset("lapa", layouts.lapa(tmp_path), "val")[0]
    assert sample.parsing is not None
    assert sample.points is not None
    for i in range(16):
        assert sample.parsing[16 * (i // 4), 16 * (i % 4)] == class_named(LAPA[i % 11])
    assert np.allclose(sample.points, FIVE)
    assert sample.box is not None


def test_300w_points_and_splits(tmp_path: Path) -> None:
    root = layouts.pts(tmp_path)
    test = open_dataset("300w", root, "test")
    assert sorted(test[i].key for i in range(len(test))) == ["helen/testset/one_1", "ibug/one_1"]
    train = open_dataset("300w", root, "train")
    assert sorted(train[i].key for i in range(len(train))) == ["helen/trainset/one_1", "lfpw/trainset/one_1"]
    points = train[0].points
    assert points is not None
    assert np.allclose(points[:5], FIVE - 0.5, atol=1e-4), "the centre of the first pixel is at 1 in the files"
    named = dict(zip(train.classes["landmarks"], points, strict=True))
    assert len(named) == 70
    for index, name in (
        (0, "left_jaw_1"),
        (8, "chin"),
        (16, "right_jaw_1"),
        (45, "right_eye_1"),
        (66, "inner_lower_lip"),
    ):
        assert np.allclose(named[name], layouts.points_68()[index] - 0.5, atol=1e-4)


def test_mirror_of_the_68_points() -> None:
    """Pairs of 300-W's markup, from its figure."""
    pairs = {
        0: 16,
        7: 9,
        17: 26,
        21: 22,
        31: 35,
        36: 45,
        37: 44,
        39: 42,
        41: 46,
        48: 54,
        50: 52,
        59: 55,
        60: 64,
        67: 65,
    }
    mirror = mirrored(POINT_NAMES_68)
    assert all(mirror[a] == b and mirror[b] == a for a, b in pairs.items())
    assert [i for i, k in enumerate(mirror) if i == k] == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]


def test_points_of_a_table(tmp_path: Path) -> None:
    root = layouts.points_table(tmp_path)
    parts = {split: open_dataset("points", root, split) for split in ("train", "val", "test")}
    samples = [part[i] for part in parts.values() for i in range(len(part))]
    assert len(samples) == 30
    assert len({(sample.key.partition("#")[0]) for sample in samples}) == 20, "ten pictures have two faces"
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/points_val.txt").write_text("1.png\n3.png#2\n")
    assert open_dataset("points", root, "val", tmp_path / "lists").keys == ["1.png", "3.png#2"]  # type: ignore[attr-defined]
    where = {}
    for split, part in parts.items():
        for i in range(len(part)):
            assert where.setdefault(part[i].key.partition("#")[0], split) == split, "a picture is in one split"
    second = next(sample for sample in samples if sample.key.endswith("#2"))
    assert second.points is not None
    assert np.isnan(second.points[5]).all()
    assert np.allclose(second.points[:5], FIVE + 1)
    assert second.box == pytest.approx(box_around(FIVE + 1))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["photo,left_eye_x,left_eye_y", "a.png,1,2"], "expected a column 'box_x0'"),
        (["photo,score", "a.png,1"], "expected a column '<point>_x'|expected a column 'box_x0'"),
        (
            ["photo,box_x0,box_y0,box_x1,box_y1,chin_x,chin_y", "a.png,0,0,9,9,1"],
            "points.csv:2: expected 7 cells; got 6",
        ),
        (
            ["photo,box_x0,box_y0,box_x1,box_y1,chin_x,chin_y", "a.png,0,0,9,9,1,inf"],
            "points.csv:2: a number is not finite",
        ),
    ],
)
def test_tables_of_points_that_do_not_fit(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "points.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        open_dataset("points", tmp_path, "train")


def test_helen194_points(tmp_path: Path) -> None:
    root = layouts.helen194(tmp_path)
    sample = open_dataset("helen194", root, "test")[0]
    assert sample.key == "b_1"
    assert sample.points is not None
    assert np.allclose(sample.points[[0, 1, 3, 4]], FIVE[[0, 1, 3, 4]])
    assert np.isnan(sample.points[2]).all(), "the markup has no nose tip"


def test_class_folders(tmp_path: Path) -> None:
    def names(name: str, split: str) -> set[str]:
        dataset = open_dataset(name, tmp_path / name, split)
        return {EMOTIONS[dataset.labels_of(i)["emotion"]] for i in range(len(dataset))}

    for name in ("rafdb", "affectnet", "folders"):
        WRITERS[name](tmp_path / name)
    assert names("rafdb", "test") == {"surprise", "neutral"}
    assert names("affectnet", "test") == {"neutral", "angry"}
    assert names("folders", "train") == {"angry", "happy"}
    counts = [len(open_dataset("rafdb", tmp_path / "rafdb", split)) for split in ("train", "val", "test")]
    assert counts == [18, 2, 20]
    layouts.folders(tmp_path / "flat", ("fear",), (".",), each=20)
    assert [len(open_dataset("folders", tmp_path / "flat", s)) for s in ("train", "val", "test")] == [16, 2, 2]


def test_lists_overrule_the_split(tmp_path: Path) -> None:
    root = layouts.mtfl(tmp_path / "MTFL")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "mtfl_val.txt").write_text("AFLW/0001-image.jpg\nlfw_5590/Person_0003.jpg\n")
    dataset = open_dataset("mtfl", root, "val", lists)
    assert [dataset[i].key for i in range(len(dataset))] == ["AFLW/0001-image.jpg", "lfw_5590/Person_0003.jpg"]
    with pytest.raises(DataError, match=r"mtfl_train\.txt: no such list"):
        open_dataset("mtfl", root, "train", lists)
    (root / "splits").mkdir()
    (root / "splits" / "mtfl_train.txt").write_text("lfw_5590/Person_0001.jpg\n")
    assert len(open_dataset("mtfl", root, "train")) == 1
    assert len(open_dataset("fer2013", layouts.fer2013_folders(tmp_path / "fer"), "val", lists)) == 7
    (lists / "fer2013_val.txt").write_text("PublicTest/fear/102\n")
    dataset = open_dataset("fer2013", tmp_path / "fer", "val", lists)
    assert EMOTIONS[dataset[0].labels["emotion"]] == "fear"


def test_mirror_swaps_sides() -> None:
    assert mirrored(POINT_NAMES) == (1, 0, 2, 4, 3)
    assert mirrored(MTFL_ATTRIBUTES["pose"]) == (4, 3, 2, 1, 0)
    assert mirrored(EMOTIONS) == tuple(range(7))
    assert mirrored(PARSING_CLASSES) == tuple(range(9))


@pytest.mark.parametrize("name", ["mtfl", "celebamask", "fer2013"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_real_data(real_data: Path, shared: Path, name: str, split: str) -> None:
    folder = {"mtfl": "MTFL", "celebamask": "CelebAMask-HQ", "fer2013": "fer2013"}[name]
    sizes = {"mtfl": (9000, 1000, 2995), "celebamask": (1999, 200, 200), "fer2013": (27222, 3487, 3589)}[name]
    dataset = open_dataset(name, real_data / folder, split, shared / "data" / "splits")
    assert len(dataset) == sizes[("train", "val", "test").index(split)]
    for index in np.linspace(0, len(dataset) - 1, 5).astype(int):
        sample = dataset[int(index)]
        if sample.points is not None:
            assert sample.points[0, 0] < sample.points[1, 0]
            assert (sample.points > 0).all()
            assert (sample.points < sample.image.shape[0]).all()
        if sample.parsing is not None:
            assert {class_named("skin"), class_named("nose")} <= set(np.unique(sample.parsing))
            eyes = np.nonzero(sample.parsing == class_named("eye"))[0]
            lips = np.nonzero(sample.parsing == class_named("upper_lip"))[0]
            assert not (eyes.size and lips.size) or eyes.mean() < lips.mean()


def test_real_counts(real_data: Path) -> None:
    """The counts that MTFL's description gives for its training file."""
    datasets = [open_dataset("mtfl", real_data / "MTFL", split) for split in ("train", "val")]
    labels = [d.labels_of(i) for d in datasets for i in range(len(d))]
    poses = np.bincount([label["pose"] for label in labels])
    assert poses.tolist() == [136, 1113, 7445, 1111, 195]
    smiles = MTFL_ATTRIBUTES["smile"].index("smiling")
    assert sum(label["smile"] == smiles for label in labels) == 5616


def test_real_csv_equals_the_folders(real_data: Path) -> None:
    table = open_dataset("fer2013", real_data / "fer2013" / "fer2013.csv", "val")
    folders = open_dataset("fer2013", real_data / "fer2013", "val")
    assert len(table) == len(folders) == 3589
    by_picture = [folders[i].image.tobytes() for i in range(0, 3589, 97)]
    table_pictures = {table[i].image.tobytes() for i in range(len(table))}
    assert set(by_picture) <= table_pictures
