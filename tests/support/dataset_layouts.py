"""Datasets in their true layouts, a few pictures each, written by the tests that read them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ifan.config import POINT_NAMES
from ifan.data.labels import CELEBAMASK, FER2013

SIZE = 64
POINTS = np.array([[20.5, 24.25], [41, 25], [31, 35], [23, 45], [39, 46.5]])
"""Left eye, right eye, nose, left and right mouth corner as seen in the picture."""


def picture(seed: int, size: int = SIZE) -> np.ndarray:
    """A smooth colour picture (size, size, 3) RGB that survives JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)
    return path


def mtfl_line(path: str, codes: str = "2 1 2 4", points: np.ndarray = POINTS) -> str:
    numbers = " ".join(f"{v:.6f}" for v in points.T.ravel())
    return f" {path} {numbers} {codes}\r\n"


def mtfl(root: Path, train: int = 20, test: int = 2) -> Path:
    names = [f"lfw_5590\\Person_{i:04d}.jpg" for i in range(train)]
    others = [f"AFLW/{i:04d}-image.jpg" for i in range(test)]
    for i, name in enumerate([*names, *others]):
        save(root / name.replace("\\", "/"), picture(i))
    (root / "training.txt").write_bytes("".join(map(mtfl_line, names)).encode())
    (root / "testing.txt").write_bytes("".join(map(mtfl_line, others)).encode())
    return root


def face_ids(size: int = SIZE) -> np.ndarray:
    """A map with all nineteen CelebAMask-HQ ids as blocks; the person's left eye has the larger x."""
    ids = np.zeros((size, size), np.uint8)
    for i in range(len(CELEBAMASK)):
        ids[8 + 8 * (i // 5) : 16 + 8 * (i // 5), 8 + 8 * (i % 5) : 16 + 8 * (i % 5)] = i
    ids[48:56, 40:48], ids[48:56, 16:24] = 4, 5
    return ids


def palette_png(path: Path, ids: np.ndarray) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)
    return path


def celebamask(root: Path, ids: tuple[int, ...] = (0, 26, 1503)) -> Path:
    for i in ids:
        save(root / "CelebA-HQ-img" / f"{i}.jpg", picture(i))
        palette_png(root / "mask" / f"{i}.png", face_ids())
    return root


def celebamask_parts(root: Path, ids: tuple[int, ...] = (0, 2005)) -> Path:
    """Photos twice as large as the maps, as in the release; one RGB PNG a part, 255 inside."""
    names = list(CELEBAMASK)
    for i in ids:
        save(root / "CelebA-HQ-img" / f"{i}.jpg", picture(i, 2 * SIZE))
        for k in set(np.unique(face_ids())) - {0}:
            part = np.repeat(np.where(face_ids() == k, np.uint8(255), np.uint8(0))[..., None], 3, 2)
            save(root / "CelebAMask-HQ-mask-anno" / str(i // 2000) / f"{i:05d}_{names[k]}.png", part)
    return root


def fer_face(seed: int) -> np.ndarray:
    return picture(seed, 48)[..., 0]


def fer2013_folders(root: Path) -> Path:
    for usage in ("Training", "PublicTest", "PrivateTest"):
        for i, name in enumerate(FER2013):
            save(root / usage / name / f"{usage}_{100 + i}.png", fer_face(i))
    return root


def fer2013_csv(root: Path) -> Path:
    rows = ["emotion,pixels,Usage"]
    for usage in ("Training", "PublicTest", "PrivateTest"):
        rows += [f"{i},{' '.join(map(str, fer_face(i).ravel()))},{usage}" for i in range(len(FER2013))]
    root.mkdir(parents=True, exist_ok=True)
    (root / "fer2013.csv").write_text("\n".join(rows) + "\n")
    return root


def helen(root: Path) -> Path:
    """Soft maps: everywhere 60 % background and 40 % skin, then certain parts; two weak eyes beat one brow."""
    for i, name in enumerate(("exemplars", "tuning", "testing")):
        key = f"100{i}_1"
        (root / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.txt").write_text(f"{i + 1} , {key}\n")
        save(root / "images" / f"{key}.jpg", picture(i))
        maps = np.zeros((11, SIZE, SIZE), np.uint8)
        maps[0], maps[1] = 153, 102
        for k, (y, x) in {2: (20, 18), 3: (20, 38), 4: (26, 18), 5: (26, 38), 6: (34, 30), 7: (42, 28)}.items():
            maps[:2, y : y + 4, x : x + 8] = 0
            maps[k, y : y + 4, x : x + 8] = 255
        # One pixel row: brow 100, both eyes 80 each -> eye.
        maps[:, 50, 30:34] = 0
        maps[2, 50, 30:34], maps[4, 50, 30:34], maps[5, 50, 30:34] = 100, 80, 75
        for k, soft in enumerate(maps):
            save(root / "labels" / key / f"{key}_lbl{k:02d}.png", soft)
    return root


def points_68() -> np.ndarray:
    points = np.random.default_rng(0).uniform(10, 50, (68, 2))
    outline = np.array([[-3, 0], [-1, -1], [1, -1], [3, 0], [1, 1], [-1, 1]])
    points[36:42], points[42:48] = outline + np.array([20, 24]), outline + np.array([41, 25])
    points[[30, 48, 54]] = [[31, 35], [23, 45], [39, 46]]
    return points


def pts(root: Path) -> Path:
    for folder in ("helen/trainset", "lfpw/trainset", "helen/testset", "ibug"):
        save(root / folder / "one_1.jpg", picture(1))
        lines = "".join(f"{x:.4f} {y:.4f}\n" for x, y in points_68())
        (root / folder / "one_1.pts").write_text(f"version: 1\nn_points:  68\n{{\n{lines}}}\n")
    return root


def points_table(root: Path) -> Path:
    """Twenty pictures, half of them with a second face one pixel further, whose chin is unlabelled."""
    five = np.array([[20, 24], [41, 25], [31, 35], [23, 45], [39, 46]])
    lines = ["photo,score," + ",".join(f"{name}_{axis}" for name in (*POINT_NAMES, "chin") for axis in "xy")]
    for i in range(20):
        save(root / f"{i}.png", picture(i))
        for face in range(1 + i % 2):
            places = ",".join(f"{v:.1f}" for v in (five + face).ravel())
            lines.append(f"{i}.png,0.9,{places},{',' if face else '31.0,55.5'}")
    lines.append(f"without_a_face.png,{12 * ','}")
    (root / "points.csv").write_text("\n".join(lines))
    return root


def points_194() -> np.ndarray:
    points = np.random.default_rng(0).uniform(10, 50, (194, 2))
    points[114:134], points[134:154] = [20, 24], [41, 25]
    points[58], points[72] = [23, 45], [39, 46]
    return points


def helen194(root: Path) -> Path:
    for i, name in enumerate(("a_1", "b_1")):
        save(root / "train_1" / f"{name}.jpg", picture(i))
        lines = "".join(f"{x:.3f} , {y:.3f}\n" for x, y in points_194())
        path = root / "annotation" / f"{i + 1}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{name}\n{lines}")
    (root / "trainnames.txt").write_text("a_1\n")
    (root / "testnames.txt").write_text("b_1\n")
    return root


def lapa(root: Path) -> Path:
    points = np.random.default_rng(0).uniform(10, 50, (106, 2))
    points[66:74], points[75:83] = [20, 24], [41, 25]
    points[[54, 84, 90]] = [[31, 35], [23, 45], [39, 46]]
    ids = np.repeat(np.repeat(np.arange(16).reshape(4, 4) % 11, 16, 0), 16, 1).astype(np.uint8)
    for i, split in enumerate(("train", "val", "test")):
        save(root / split / "images" / f"{i}_0.jpg", picture(3))
        save(root / split / "labels" / f"{i}_0.png", ids)
        path = root / split / "landmarks" / f"{i}_0.txt"
        path.parent.mkdir(parents=True)
        path.write_text("106\n" + "".join(f"{x:.3f} {y:.3f}\n" for x, y in points))
    return root


def folders(root: Path, names: tuple[str, ...], splits: tuple[str, ...], each: int = 10) -> Path:
    for split in splits:
        for name in names:
            for i in range(each):
                save(root / split / name / f"{name}_{i}.jpg", picture(i, 32))
    return root
