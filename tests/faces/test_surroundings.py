"""The wider pass: which faces get one, what it begins with, and where its regions end up in the photo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ifan.config import PAPER_TASKS, NetworkConfig, TaskConfig
from ifan.faces import FaceAnalyzer
from ifan.faces.predictor import AROUND_KEY, NetworkPredictor
from ifan.predictions import FacePredictions
from ifan.refine import AROUND, reaching_out
from tests.support.networks import network

CONFIG = NetworkConfig(size=32, growth=4, block_layers=1, stem_channels=8, up_channels=16, iterations=2, reframe=True)
HAIR = PAPER_TASKS[0].classes.index("hair")
BOX = (60.0, 60.0, 80.0, 90.0)


def with_hair(faces: int, rows: slice, size: int = 32) -> FacePredictions:
    """Predictions of hair in these rows and of skin elsewhere."""
    logits = np.zeros((faces, len(PAPER_TASKS[0].classes), size, size), np.float32)
    logits[:, 1] = 5
    logits[:, HAIR, rows] = 10
    points = np.array([[-0.2, 0.2, 0, -0.15, 0.15], [-0.1, -0.1, 0.05, 0.2, 0.2]], np.float32)
    return FacePredictions(logits, np.repeat(points[None], faces, 0), {"emotion": np.zeros((faces, 7), np.float32)})


@pytest.fixture
def analyzer() -> FaceAnalyzer:
    """Of a network that finds hair in the upper eighth of any crop, and skin elsewhere."""
    made = FaceAnalyzer(network(CONFIG), detector=None)
    assert isinstance(made.predictor, NetworkPredictor)
    made.predictor.runner = lambda images, begun: with_hair(len(images), slice(0, 4))
    return made


@pytest.mark.parametrize(("rows", "expected"), [(slice(0, 2), True), (slice(2, 20), True), (slice(0, 0), False)])
def test_hair_at_the_border_goes_on_beyond_it(rows: slice, expected: bool) -> None:
    assert reaching_out(CONFIG, with_hair(2, rows)).tolist() == [expected] * 2


def test_hair_inside_alone_and_networks_without_hair() -> None:
    found = with_hair(1, slice(0, 0))
    found.parsing_logits[:, HAIR, 8:24, 8:24] = 10
    assert not reaching_out(CONFIG, found)[0]
    halves = replace(CONFIG, reframe=False, iterations=1, tasks=(TaskConfig("halves", "parsing", ("left", "right")),))
    assert not reaching_out(halves, with_hair(1, slice(0, 4)))[0]
    assert reaching_out(CONFIG, with_hair(0, slice(0, 4))).shape == (0,)


def test_a_pass_for_the_faces_that_need_it_and_have_room() -> None:
    predictor, seen = NetworkPredictor(network(CONFIG)), []

    def run(images: np.ndarray, begun: FacePredictions | None) -> FacePredictions:
        seen.append((images, begun))
        return with_hair(len(images), slice(0, 4))

    predictor.runner = run
    crops = np.zeros((3, 3, 32, 32), np.uint8)
    windows = [np.full((102, 102, 3), 40 * (i + 1), np.uint8) for i in range(3)]
    found = predictor(crops, windows, [True, False, True])
    assert np.isfinite(found[AROUND_KEY]).all((1, 2, 3)).tolist() == [True, False, True]
    images, begun = seen[-1]
    assert [int(image.max()) for image in images] == [40, 120]
    # What was found begins the pass in the wider crop's terms: nearer to its middle by so much.
    np.testing.assert_allclose(begun.points[0], with_hair(1, slice(0)).points[0] / AROUND, atol=0.05)
    assert AROUND_KEY not in predictor(crops, windows)
    assert len(seen) == 5


def test_regions_of_both_crops_in_the_photo(analyzer: FaceAnalyzer) -> None:
    photo = np.zeros((150, 150, 3), np.uint8)
    face = analyzer(photo, BOX)[0]
    assert face.seen == replace(face.crop, side=AROUND * face.crop.side)
    rows = np.flatnonzero(face.mask("hair").any(1))
    first, wide = (crop.cy - crop.side / 2 for crop in (face.crop, face.seen))
    assert rows.min() == pytest.approx(wide, abs=1)
    # The wider pass finds hair in its upper eighth; the first crop, whose upper eighth is hair too, begins below that.
    assert rows.max() == pytest.approx(first + face.crop.side / 8, abs=2)
    assert face.mask("skin")[round(wide + face.seen.side) - 2, 75]


def test_no_wider_pass_where_the_photo_ends(analyzer: FaceAnalyzer) -> None:
    photo = np.zeros((60, 60, 3), np.uint8)
    whole = analyzer(photo)[0]
    assert (whole.seen, whole.region) == (None, (0, 0, 60, 60))
    assert whole.mask("hair").any()
