"""A validation split as hard as MTFL's test split, for choosing models without measuring any on the latter.

In MTFL's test pictures faces lie off the centre (standard deviation 4.3 % of the side; 1.3 % in training), are 12 %
larger, and 10.6 % of them are in profile (3.3 % in training).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ifan.data.dataset import FaceDataset
from ifan.data.sample import FaceSample

SHIFT = 0.041
"""Standard deviation of the crop's shift, in crop sides: what is missing to 4.3 %."""
SIDE = 0.89
"""Side of the crop, as a part of the usual one."""
PROFILE_SHARE = 0.106


class Shifted:
    """A dataset whose crops are shifted by a seeded normal draw and tighter, with profiles repeated to their share.

    ``dataset``: any; profiles are known by its category ``pose``, and nothing is repeated without it.
    """

    def __init__(self, dataset: FaceDataset, seed: int = 0) -> None:
        self.name, self.margin, self.classes = dataset.name, dataset.margin, dataset.classes
        self.dataset = dataset
        profiles = self._profiles()
        others = len(dataset) - len(profiles)
        wanted = PROFILE_SHARE / (1 - PROFILE_SHARE) * others
        times = max(1, round(wanted / len(profiles))) if profiles else 1
        self.order = [*range(len(dataset)), *(times - 1) * profiles]
        self.moves = SHIFT * np.random.default_rng(seed).standard_normal((len(self.order), 2))

    @property
    def tasks(self) -> frozenset[str]:
        """Those of the dataset."""
        return self.dataset.tasks

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> FaceSample:
        sample = self.dataset[self.order[index]]
        height, width = sample.image.shape[:2]
        x0, y0, x1, y1 = sample.box or (0.0, 0.0, float(width), float(height))
        side, (dx, dy) = max(x1 - x0, y1 - y0), self.moves[index]
        cx, cy, half = (x0 + x1) / 2 + dx * side, (y0 + y1) / 2 + dy * side, SIDE * side / 2
        return replace(sample, box=(cx - half, cy - half, cx + half, cy + half))

    def labels_of(self, index: int) -> dict[str, int]:
        """Class ids by task of sample ``index``, without reading its picture."""
        return self.dataset.labels_of(self.order[index])

    def _profiles(self) -> list[int]:
        names = self.dataset.classes.get("pose", ())
        profile = {i for i, name in enumerate(names) if "profile" in name}
        if not profile:
            return []
        return [i for i in range(len(self.dataset)) if self.dataset.labels_of(i).get("pose", -1) in profile]
