"""The same analyzer over a Ray Data dataset, on a local cluster: two workers, and processors left for reading."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("ray.data", reason="Ray is large: pip install 'ifan[ray]' to run these")

import ray

from ifan.bulk.ray import predict_dataset
from ifan.bulk.run import predict_bulk
from ifan.faces import FaceAnalyzer


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # else Ray reports to its makers
    here = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": here}})
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:02}.png"), rng.integers(0, 255, (24, 24 + i % 3, 3), np.uint8))
    (folder / "03.png").write_bytes(b"hello")
    return sorted(str(path) for path in folder.iterdir())


def test_rows_are_those_of_bulk_prediction(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    paths, out = pictures(tmp_path / "in", 14), tmp_path / "out.parquet"
    predict_bulk(analyzer, paths, out)
    expected = pq.read_table(out).to_pylist()
    dataset = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=4)
    from_bytes = ray.data.read_binary_files(paths, include_paths=True)
    for rows in (
        predict_dataset(analyzer, dataset, workers=2, batch_rows=3).take_all(),
        predict_dataset(analyzer, from_bytes, photo="bytes", workers=2, batch_rows=5).take_all(),
    ):
        rows.sort(key=lambda row: row["input"])
        assert [row["input"] for row in rows] == paths
        assert [row["error"] for row in rows].count(None) == 13
        assert "not a picture" in rows[3]["error"]
        for row, wanted in zip(rows, expected, strict=True):
            same_row(row, wanted)


def same_row(row: dict, wanted: dict) -> None:
    """Equal up to the rounding that another batch brings."""
    assert (row["width"], row["height"], len(row["faces"])) == (wanted["width"], wanted["height"], len(wanted["faces"]))
    for face, other in zip(row["faces"], wanted["faces"], strict=True):
        assert face["box"] == other["box"]
        assert face["landmarks"]["nose"] == pytest.approx(other["landmarks"]["nose"], abs=2e-3)
        assert face["classes"]["emotion"] == pytest.approx(other["classes"]["emotion"], abs=1e-4)


def test_both_workers_work_and_write(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    images = [{"image": np.full((20, 30, 3), 3 * i, np.uint8), "path": f"photo-{i}"} for i in range(40)]
    dataset = ray.data.from_items(images, override_num_blocks=8)
    predict_dataset(analyzer, dataset, photo="image", workers=2, batch_rows=5).write_parquet(str(tmp_path / "out"))
    rows = ray.data.read_parquet(str(tmp_path / "out")).take_all()
    assert sorted(row["input"] for row in rows) == sorted(image["path"] for image in images)
    assert all(row["error"] is None and len(row["faces"]) == 1 for row in rows)


def test_wrong_columns_and_numbers(analyzer: FaceAnalyzer) -> None:
    dataset = ray.data.from_items([{"file": "a.png"}])
    with pytest.raises(ValueError, match="no such column; its columns are"):
        predict_dataset(analyzer, dataset)
    with pytest.raises(ValueError, match="at least 1"):
        predict_dataset(analyzer, dataset, photo="file", workers=0)
