"""What runs as ifan on a GPU: its CUDA graphs, or with ``--ranges`` the network part by part; torch.cuda replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ifan.bench.network import _engine, _images, _listed, random_network
from ifan.bench.problem import Setting
from ifan.config import NetworkConfig
from ifan.cuda_graph import in_bfloat16
from tests.support.pretended_gpu import FakeDevice

CONFIG = NetworkConfig(size=32, iterations=2, growth=4, block_layers=1, stem_channels=8, up_channels=16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_and_parts_compute_the_same(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = random_network(CONFIG), [_images(32, 2, seed) for seed in (1, 2)]
    device = FakeDevice()
    monkeypatch.setattr("ifan.cuda_graph.CudaDevice", lambda _: device)
    model = network if dtype == "float32" else in_bfloat16(network)
    with torch.inference_mode():
        wanted = [[value.float() for value in _listed(model(x)[-1])] for x in images]
    graph = _engine(network, images, dtype, Setting(Path(), "cuda"), list)
    parts = _engine(network, images, dtype, Setting(Path(), "cuda", ranges=True), list)
    assert graph.note == "CUDA graph, backend auto"
    assert graph.steps is not None
    assert parts.note == "network, part by part"
    for run in (graph.run, graph.steps, parts.run):
        for i in range(3):
            assert all(torch.equal(a, b) for a, b in zip(run(i), wanted[i % 2], strict=True))
    assert device.log == ["capture", *["replay"] * 3]
