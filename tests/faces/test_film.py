"""Overlays of clips: they keep the sound, and what came before damage."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from ifan.faces import FaceAnalyzer
from ifan.faces.clip import save_clip
from ifan.faces.sources import frames
from tests.support.clips import write_clip


def hum(path: Path, count: int, coding: str) -> Path:
    """A grey clip of ``count`` frames, ten a second, that hums in some coding of sound."""
    with av.open(str(path), "w") as container:
        pictures, sound = container.add_stream("libx264", 10), container.add_stream(coding, 44100)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        for _ in range(count):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            container.mux(pictures.encode(picture))
        wave = np.sin(np.arange(4410 * count) / 20).astype(np.float32)[None]
        samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        samples.sample_rate = 44100
        container.mux([*pictures.encode(), *sound.encode(samples), *sound.encode()])
    return path


def sounds(path: Path) -> list[tuple[float, bytes]]:
    """Seconds and bytes of each packet of sound."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.dts is not None]
        return [(round(float(packet.pts * packet.time_base), 4), bytes(packet)) for packet in packets]


def test_what_came_before_the_damage_is_kept(
    analyzer: FaceAnalyzer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "grey.mp4", 11)

    def broken(path: str, every: int):
        yield from list(frames(path, every))[:7]
        raise ValueError(f"{path}: the clip is damaged: expected 11 frames; got 7")

    monkeypatch.setattr("ifan.faces.video.frames", broken)
    with pytest.raises(ValueError, match=r"grey.mp4: the clip is damaged: .+; 7 frames before that are in .+_overlay"):
        save_clip(analyzer, str(clip), tmp_path / "out", "a")
    assert len((tmp_path / "out" / "a.jsonl").read_text().splitlines()) == 7
    assert len(list(frames(str(tmp_path / "out" / "a_overlay.mp4")))) == 7


@pytest.mark.parametrize("coding", ["aac", "mp3"])
def test_an_overlay_keeps_the_sound(analyzer: FaceAnalyzer, tmp_path: Path, coding: str) -> None:
    clip = hum(tmp_path / "a.mp4", 20, coding)
    (film, _), _, _ = save_clip(analyzer, str(clip), tmp_path / "out", "a")
    heard = [sound for sound in sounds(clip) if sound[0] <= 2]  # up to the end of the last picture
    assert sounds(film) == heard
    assert len(heard) > 50
    assert len(list(frames(str(film)))) == 20
    (film, _), _, _ = save_clip(analyzer, str(clip), tmp_path / "third", "a", every=3)
    assert sounds(film)[: len(heard)] == heard
