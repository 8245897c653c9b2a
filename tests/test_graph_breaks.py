"""`torch.compile` sees the whole network as one graph: ``fullgraph=True`` raises at the first break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from ifan.config import NetworkConfig
from ifan.export.graph import FeedbackGraph
from ifan.network import IFAN, Predictions

SIZE = 32


def faces() -> Tensor:
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)


def one_graph(run: Callable[..., Any], backend: str) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(run, fullgraph=True, backend=backend)


def values(predictions: Predictions) -> list[Tensor]:
    return [predictions.parsing_logits, predictions.points, *predictions.class_logits.values()]


def assert_same(found: Predictions, expected: Predictions) -> None:
    for actual, wanted in zip(values(found), values(expected), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["dense", "heat_maps"])
def test_inference_with_feedback(head: Literal["dense", "heat_maps"]) -> None:
    network, images = IFAN(NetworkConfig(size=SIZE, block_layers=2, landmark_head=head)).eval(), faces()
    with torch.no_grad():
        found = one_graph(lambda x: network(x, None, 2)[-1], "eager")(images)
        assert_same(found, network(images, None, 2)[-1])


def test_an_iteration_of_the_exported_graph() -> None:
    """The benchmark compiles it as what a user would pick instead."""
    graph = FeedbackGraph(IFAN(NetworkConfig(size=SIZE, block_layers=2)))
    with torch.no_grad():
        share = graph.image_share(faces())
        found = one_graph(graph.iterate, "eager")(share, graph.first)
        torch.testing.assert_close(found, graph.iterate(share, graph.first), rtol=1e-4, atol=1e-5)


def test_training() -> None:
    """Forward and backward, with batch statistics and the fused operations' own gradients."""
    network, images = IFAN(NetworkConfig(size=SIZE, block_layers=2, dropout=0.0)).train(), faces()

    def total(predictions: Predictions) -> Tensor:
        return torch.stack([value.square().mean() for value in values(predictions)]).sum()

    gradients = []
    for run in (one_graph(lambda x: network(x, None, 1)[-1], "aot_eager"), lambda x: network(x, None, 1)[-1]):
        network.zero_grad()
        total(run(images)).backward()
        gradients.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        assert float((gradients[0][name] - gradient).norm()) <= 1e-3 * float(gradient.norm()), name


def test_a_break_would_raise() -> None:
    def broken(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        one_graph(broken, "eager")(torch.zeros(1))
