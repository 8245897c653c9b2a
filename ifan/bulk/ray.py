"""Beyond one machine: the same analyzer, mapped over a Ray Data dataset (``pip install 'ifan[ray]'``).

import ray, ifan
from ifan.bulk.ray import predict_dataset

photos = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
predict_dataset(ifan.load(), photos, photo="bytes", workers=64).write_parquet("s3://bucket/faces")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ifan.bulk.rows import analyse
from ifan.bulk.tables import schema
from ifan.faces.analyzer import FaceAnalyzer
from ifan.optional import require

if TYPE_CHECKING:
    import ray.data


def predict_dataset(
    analyzer: FaceAnalyzer,
    dataset: ray.data.Dataset,
    *,
    photo: str = "path",
    name: str = "path",
    workers: int = 1,
    batch_rows: int = 64,
    **resources: Any,
) -> ray.data.Dataset:
    """The rows of each photo of ``dataset``, as bulk prediction writes them (`ifan.bulk.tables.COLUMNS`); lazy.

    Args:
        analyzer: what analyses; each worker gets a copy, so it needs no files of its own.
        dataset: one photo a row.
        photo: the column with the photos: paths that every worker can read, the bytes of picture files, or
            (H, W, 3) uint8 RGB arrays.
        name: the column that names a photo in its row and in messages; photos of datasets without it are numbered
            within their batch.
        workers: how many copies work at once; leave the cluster processors for reading, or Ray waits for ever.
        batch_rows: photos that a worker gets at once; their faces share batches of the analyzer's ``batch_size``.
        resources: of a worker, for Ray: ``num_cpus``, ``num_gpus``, ``memory``, ...

    A photo that cannot be read is a row with its reason; nothing else is lost.

    Raises:
        ValueError: a number out of range, or no column ``photo``.
        ImportError: Ray or pyarrow is missing.
    """
    pool = require("predict_dataset", "ray.data", "Ray", "ifan[ray]").ActorPoolStrategy
    if workers < 1 or batch_rows < 1:
        raise ValueError(f"workers and batch_rows must be at least 1; got {workers} and {batch_rows}")
    columns = dataset.columns()
    if columns is not None and photo not in columns:
        raise ValueError(f"photo={photo!r}: the dataset has no such column; its columns are {columns}")
    schema(analyzer.predictor.tasks)  # says at once if pyarrow is missing
    return dataset.map_batches(
        _Worker,
        fn_constructor_args=(analyzer, photo, name),
        batch_size=batch_rows,
        batch_format="numpy",
        compute=pool(size=workers),
        **resources,
    )


class _Worker:
    """Lives as long as its process: the network is prepared once."""

    def __init__(self, analyzer: FaceAnalyzer, photo: str, name: str) -> None:
        self.analyzer, self.photo, self.name = analyzer, photo, name
        self.schema = schema(analyzer.predictor.tasks)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Any:
        import pyarrow as pa

        photos = list(batch[self.photo])
        names = batch.get(self.name, np.array([f"photo {i}" for i in range(1, len(photos) + 1)]))
        return pa.Table.from_pylist(analyse(self.analyzer, photos, [str(name) for name in names]), self.schema)
