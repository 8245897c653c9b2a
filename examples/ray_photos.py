"""Analyse a folder of photos on all processors, or on a Ray cluster, into Parquet.

    python examples/ray_photos.py photos faces 2

Needs Ray: pip install 'ifan[ray]'. With ``ray.init(address="auto")`` the same lines run on a cluster.
"""

from __future__ import annotations

import sys

import ray

import ifan
from ifan.bulk.ray import predict_dataset


def main(photos: str, out: str, workers: str = "1") -> None:
    """Write the faces of all ``photos`` to the folder ``out``; each of the ``workers`` has an analyzer of its own."""
    pictures = ray.data.read_binary_files(photos, include_paths=True)
    predict_dataset(ifan.load(), pictures, photo="bytes", workers=int(workers)).write_parquet(out)
    print(ray.data.read_parquet(out).count(), "photos")


if __name__ == "__main__":
    main(*sys.argv[1:])
