"""Weights that any machine can draw again, copied between `ifan.IFAN` and the independent reference port.

``python tests/golden.py`` writes ``tests/golden.npz`` from the reference port; needs the folder ``shared`` beside the
repository. The file holds outputs only: weights, statistics and images come from seeded generators.
"""

from __future__ import annotations

import importlib.util
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from ifan.config import NetworkConfig
from ifan.network import IFAN

FILE = Path(__file__).with_name("golden.npz")
SIZES, BATCH, ITERATIONS = (64, 128), 2, 3


def draw(name: str, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> Tensor:
    """Uniform numbers that depend on ``name`` alone."""
    numbers = np.random.default_rng(zlib.crc32(name.encode())).uniform(low, high, shape)
    return torch.from_numpy(numbers)


def network(size: int) -> IFAN:
    """The released graph in double precision with drawn weights *and* drawn normalisation statistics, in eval mode."""
    model = IFAN(NetworkConfig(size=size)).double().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.startswith("mean_"):
                continue
            if name.endswith("running_var") or (name.endswith("weight") and value.dim() == 2 and "norm" in name):
                value.copy_(draw(name, tuple(value.shape), 0.5, 1.5))
            elif value.dim() == 4:
                bound = (6 / value[0].numel()) ** 0.5
                value.copy_(draw(name, tuple(value.shape)) * bound)
            else:
                scale = (
                    80 * value.shape[1] ** 0.5 if "head" in name and value.dim() == 2 else 3
                )  # points stay inside the crop
                value.copy_(draw(name, tuple(value.shape)) / scale)
        parsing = draw("mean_parsing", (9, size, size)).mul(2).softmax(0)
        model.set_means(parsing, draw("mean_points", (2, 5)) * 0.5, draw("mean_classes", (7,)).softmax(0))
    return model


def images(size: int) -> Tensor:
    return draw("images", (BATCH, 3, size, size), 0, 255)


def load_reference(shared: Path) -> ModuleType:
    """The reference port as a module."""
    spec = importlib.util.spec_from_file_location("ifan_reference", shared / "reference" / "ifan_reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_weights(source: IFAN, target: nn.Module) -> None:
    """Copy the weights of our network into the reference port's modules."""
    tasks = ("seg", "pts", "emo")

    def norm(ours: nn.Module, theirs: nn.ModuleDict, names: tuple[str, ...]) -> None:
        for row, name in enumerate(names):
            for key in ("weight", "bias", "running_mean", "running_var"):
                getattr(theirs[name], key).data.copy_(getattr(ours, key)[row])

    def block(ours: nn.Module, theirs: nn.Module, names: tuple[str, ...]) -> None:
        for i in range(3):
            norm(ours.norms[i], theirs.bn[i], names)
            theirs.conv[i].weight.data.copy_(ours.convolutions[i].weight)

    target.stem.weight.data.copy_(source.stem.weight)
    for encoder, name in zip(source.encoders, tasks, strict=True):
        for ours, theirs in zip(encoder.convolutions, target.re[name].convs, strict=True):
            theirs.weight.data.copy_(ours.weight)
    for i in range(5):
        block(source.down_blocks[i], target.down_dense[i], tasks)
        norm(source.down[i].norm, target.down[i].bn, tasks if i < 4 else ("seg", "emo"))
        target.down[i].conv.weight.data.copy_(source.down[i].convolution.weight)
        target.up[i].a.weight.data.copy_(source.up[i].a.weight)
        target.up[i].b.weight.data.copy_(source.up[i].b.weight)
        block(source.up_blocks[i], target.up_dense[i], ("seg",))
    block(source.middle, target.mid, ("seg", "emo"))
    target.head_seg.weight.data.copy_(source.parsing_head.weight)
    for ours, theirs in ((source.landmark_head, target.head_pts), (source.class_heads["emotion"], target.head_emo)):
        theirs.load_state_dict(ours.state_dict())


@torch.no_grad()
def reference_outputs(shared: Path, size: int) -> list[dict[str, Tensor]]:
    """Softmaxed parsing, points (B, 10) and softmaxed emotion of every iteration, from the reference port."""
    module, ours = load_reference(shared), network(size)
    theirs = module.IFAN(size).double().eval()
    copy_weights(ours, theirs)
    mean = {"seg": ours.mean_parsing[None], "pts": ours.mean_points.reshape(1, 10), "emo": ours.mean_classes[None]}
    return theirs(module.preprocess(images(size)), mean, ITERATIONS)


def sample(parsing: Tensor) -> Tensor:
    """A sixteenth of the pixels in each direction, rows and columns shifted against each other: enough for a check."""
    return parsing[:, :, 3::16, 5::16]


if __name__ == "__main__":
    folder = Path(__file__).resolve().parents[2] / "shared"
    arrays: dict[str, np.ndarray] = {}
    for side in SIZES:
        for k, out in enumerate(reference_outputs(folder, side)):
            arrays[f"{side}/{k}/parsing"] = sample(out["seg"]).numpy()
            arrays[f"{side}/{k}/points"], arrays[f"{side}/{k}/emotion"] = out["pts"].numpy(), out["emo"].numpy()
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")
