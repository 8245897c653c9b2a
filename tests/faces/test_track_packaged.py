"""The tracker with the packaged network, on a head cut out of the packaged portrait that a plate hides for a while."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ifan
from benchmarks.made_clips import Actor, MadeClip, cutout
from ifan.faces.track import Tracker
from ifan.native import cpu_refusal

PORTRAIT = Path(ifan.__file__).parent / "assets" / "astronaut.png"


@pytest.mark.skipif(cpu_refusal() is not None, reason=f"no native kernels: {cpu_refusal()}")
def test_a_hidden_head_keeps_its_id_and_is_called_occluded() -> None:
    analyzer = ifan.load()
    photo = analyzer(str(PORTRAIT))
    head = cutout(photo.image, np.array(list(photo[0].landmarks.values())))
    scene = MadeClip(
        [Actor(head, lambda i: (200.0 + 3 * i, 135.0), 120)], 14, lambda i: 130 if 6 <= i < 9 else -999, 220
    )
    tracker = Tracker(analyzer.config, analyzer.one_pass(), analyzer.detector)
    for i, (image, ((truth),)) in enumerate(scene.draw()):
        (face,) = tracker(image)
        eyes = np.linalg.norm(truth[0] - truth[1])
        away = np.linalg.norm(face.points - truth, axis=1).mean() / eyes
        assert face.id == 1
        if 6 <= i < 9:
            assert face.state == "occluded"
            assert away < 0.15
        else:
            assert face.state != "occluded"
            assert face.trust > 0.8
            assert away < 0.04
