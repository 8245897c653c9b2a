"""Datasets: readers, the crop convention, augmentation and batches across datasets.

Imported on first use: who reads pictures alone waits for none of the readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ifan.optional import lazy

if TYPE_CHECKING:
    from ifan.config import IGNORE, UNLABELLED
    from ifan.crop import Crop, crop_image, crop_labels, map_to_image, points_from_crop, points_to_crop
    from ifan.data.dataset import DataError, FaceDataset, Reader
    from ifan.data.images import ImageError, read_image
    from ifan.data.registry import DATASETS, class_names, open_dataset
    from ifan.data.sample import FaceSample
    from ifan.data.shards import ShardDataset
    from ifan.data.toy import ToyFaces

__all__ = [
    "DATASETS",
    "IGNORE",
    "UNLABELLED",
    "Crop",
    "DataError",
    "FaceDataset",
    "FaceSample",
    "ImageError",
    "Reader",
    "ShardDataset",
    "ToyFaces",
    "class_names",
    "crop_image",
    "crop_labels",
    "map_to_image",
    "open_dataset",
    "points_from_crop",
    "points_to_crop",
    "read_image",
]

_CROPS = ("Crop", "crop_image", "crop_labels", "map_to_image", "points_from_crop", "points_to_crop")
__getattr__ = lazy(
    __name__,
    {
        **dict.fromkeys(("IGNORE", "UNLABELLED"), "ifan.config"),
        **dict.fromkeys(_CROPS, "ifan.crop"),
        **dict.fromkeys(("DataError", "FaceDataset", "Reader"), "ifan.data.dataset"),
        **dict.fromkeys(("ImageError", "read_image"), "ifan.data.images"),
        **dict.fromkeys(("DATASETS", "class_names", "open_dataset"), "ifan.data.registry"),
        "FaceSample": "ifan.data.sample",
        "ShardDataset": "ifan.data.shards",
        "ToyFaces": "ifan.data.toy",
    },
)
