"""Metrics of the field for parsing, landmarks and classification, over whole datasets."""

from ifan.evaluation.classification import ClassificationMeter
from ifan.evaluation.landmarks import LandmarkMeter
from ifan.evaluation.parsing import ParsingMeter
from ifan.evaluation.runner import HEADLINES, Subset, constant_baseline, evaluate
from ifan.evaluation.shifted import Shifted

__all__ = [
    "HEADLINES",
    "ClassificationMeter",
    "LandmarkMeter",
    "ParsingMeter",
    "Shifted",
    "Subset",
    "constant_baseline",
    "evaluate",
]
