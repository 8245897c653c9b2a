"""The released graph: its published counts, and equality with an independent port."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ifan import ops
from ifan.config import EMOTIONS, PAPER_TASKS, NetworkConfig, TaskConfig, load_config
from ifan.layers import TaskNorm
from ifan.network import IFAN, Lanes, Predictions, fold_training_extras
from ifan.wiring import Widths, macs
from tests.support.golden import BATCH, FILE, ITERATIONS, SIZES, images, network, reference_outputs, sample

TINY = NetworkConfig(size=32, growth=4, stem_channels=8, up_channels=16, iterations=2)


HEAT_MAPS = replace(TINY, landmark_head="heat_maps")


def conv_weights(model: IFAN) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Conv2d))


def test_multiply_adds_are_the_published_ones() -> None:
    count = {name: sum(groups.values()) for name, groups in macs(NetworkConfig()).items()}
    assert [round(count[t] / 1e9, 3) for t in ("parsing", "landmarks", "emotion")] == [6.601, 1.607, 1.614]
    assert round(count["shared"] / 1e9, 4) == 0.0701
    small = {name: sum(groups.values()) for name, groups in macs(NetworkConfig(size=64)).items()}
    assert all(4 * small[name] == count[name] for name in count)
    parsing = macs(NetworkConfig())["parsing"]
    assert {k: round(v / 1e6, 1) for k, v in parsing.items()} == {
        "transition_up_a": 2157.9, "dense_up": 1977.7, "stem": 924.8, "transition_up_b": 804.5, "dense_down": 451.5,
        "transition_down": 236.7, "heads": 46.7, "dense_middle": 1.1,
    }  # fmt: skip


@pytest.mark.parametrize(("size", "heads"), [(128, 340_224), (64, 85_056)])
def test_parameter_counts_are_the_published_ones(size: int, heads: int) -> None:
    model = IFAN(NetworkConfig(size=size))
    assert conv_weights(model) == 3_873_772
    assert sum(c.weight.numel() for e in model.encoders for c in e.convolutions) == 84_579
    assert model.parsing_head.weight.numel() == 2_853
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(m.weight.numel() for m in linear) == heads
    assert sum(m.bias.numel() for m in linear) == 17
    assert sum(p.numel() for p in model.parameters()) == {128: 4_244_675, 64: 3_989_507}[size]
    assert [(kind, n) for kind, _, n in model.dense_heads()] == [
        (kind, m.in_features) for kind, m in zip(("landmarks", "classification"), linear, strict=True)
    ]


def test_every_task_has_its_own_normalisation() -> None:
    model = IFAN(NetworkConfig(size=64))
    channels = {"parsing": 0, "landmarks": 0, "emotion": 0}
    layers = dict.fromkeys(channels, 0)
    for name, norm in model.named_modules():
        if isinstance(norm, TaskNorm):
            tasks, width = norm.weight.shape
            past_tap = name.startswith(("down.4", "middle"))
            names = {3: list(channels), 2: ["parsing", "emotion"], 1: ["parsing"]}[tasks]
            assert (tasks == 2) == past_tap
            for task in names:
                channels[task] += width
                layers[task] += 1
    assert channels == {"parsing": 9_130, "landmarks": 2_543, "emotion": 3_658}
    assert layers == {"parsing": 38, "landmarks": 19, "emotion": 23}
    assert sum(b.numel() for n, b in model.named_buffers() if "running" in n) == 30_662


@pytest.mark.parametrize(
    "config", [NetworkConfig(), NetworkConfig(landmark_head="heat_maps")], ids=["dense", "heat maps"]
)
def test_measured_operations_are_the_counted_ones_less_the_exact_savings(config: NetworkConfig) -> None:
    """One pass of all tasks for one face at 128 px: what the port runs, minus the rewrites of the module's
    docstring."""
    model = IFAN(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), ops.use_backend("reference"):
        model(torch.zeros(1, 3, 128, 128), iterations=1)
    counted, ups_in = macs(model.config), Widths(model.config).up_in.values()
    released = sum(sum(groups.values()) for groups in counted.values())
    shared_stem = 2 * counted["parsing"]["stem"]
    pooled = sum(3 * v["transition_down"] // 4 for k, v in counted.items() if k != "shared")
    ups = [u.channels - u_merged for u, u_merged in zip(ups_in, (232, 495, 427, 343, 252), strict=True)]
    merged = sum(9 * n * 128 * u.side**2 for n, u in zip(ups, ups_in, strict=True)) + 48 * 9 * 128**2
    assert counter.get_total_flops() / 2 == released - shared_stem - pooled - merged


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_golden_outputs(size: int) -> None:
    expected = np.load(FILE, allow_pickle=False)
    with torch.no_grad():
        outputs = network(size)(images(size), iterations=ITERATIONS)
    for k, out in enumerate(outputs):
        got = {
            "parsing": sample(out.parsing_logits.softmax(1)),
            "points": out.points.reshape(BATCH, 10),
            "emotion": out.class_logits["emotion"].softmax(1),
        }
        for name, value in got.items():
            np.testing.assert_allclose(value.numpy(), expected[f"{size}/{k}/{name}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference_port(shared: Path, size: int) -> None:
    with torch.no_grad():
        ours = network(size)(images(size), iterations=ITERATIONS)
    for out, expected in zip(ours, reference_outputs(shared, size), strict=True):
        torch.testing.assert_close(out.parsing_logits.softmax(1), expected["seg"], rtol=0, atol=1e-10)
        torch.testing.assert_close(out.points.reshape(BATCH, 10), expected["pts"], rtol=0, atol=1e-10)
        torch.testing.assert_close(out.class_logits["emotion"].softmax(1), expected["emo"], rtol=0, atol=1e-10)


def test_golden_outputs_differ_between_iterations() -> None:
    """A feedback loop that fed nothing back would pass an equality of one iteration."""
    expected = np.load(FILE, allow_pickle=False)
    for name in ("parsing", "points", "emotion"):
        assert np.abs(expected[f"64/1/{name}"] - expected[f"64/2/{name}"]).max() > 1e-6


def test_lanes_give_what_every_task_for_every_sample_gives() -> None:
    model = network(64)
    x = torch.cat([images(64), images(64).flip(0) * 0.5])
    full = model(x, iterations=2)[-1]
    lanes = Lanes(torch.tensor([3, 0, 1, 2]), (1, 2, 1))
    part = model(x, lanes, iterations=2)[-1]
    torch.testing.assert_close(part.parsing_logits, full.parsing_logits[[3]], rtol=0, atol=1e-10)
    torch.testing.assert_close(part.points, full.points[[0, 1]], rtol=0, atol=1e-10)
    torch.testing.assert_close(part.class_logits["emotion"], full.class_logits["emotion"][[2]], rtol=0, atol=1e-10)
    assert [r.tolist() for r in part.rows.values()] == [[3], [0, 1], [2]]
    dense = part.dense_class_logits(4)
    assert dense.shape == (4, 7)
    assert (dense[[0, 1, 3]] == 0).all()


@pytest.mark.parametrize("config", [TINY, HEAT_MAPS], ids=["dense", "heat maps"])
@pytest.mark.parametrize("segments", [(2, 0, 0), (0, 2, 0), (0, 0, 2), (0, 0, 0), (1, 1, 2)])
def test_any_task_may_be_absent_from_a_training_batch(segments: tuple[int, int, int], config: NetworkConfig) -> None:
    model = IFAN(config).train()
    before = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    out = model(torch.rand(4, 3, 32, 32) * 255, Lanes(torch.arange(sum(segments)), segments))[-1]
    (
        out.parsing_logits.square().sum() + out.points.square().sum() + out.class_logits["emotion"].square().sum()
    ).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    norm = "down_blocks.0.norms.0.running_mean"
    moved = (dict(model.named_buffers())[norm] != before[norm]).any(1)
    assert moved.tolist() == [n > 0 for n in segments]


@pytest.mark.parametrize("config", [TINY, HEAT_MAPS], ids=["dense", "heat maps"])
def test_training_with_batch_statistics_equals_one_task_at_a_time(config: NetworkConfig) -> None:
    """Tasks share a batch but not its statistics."""
    model = IFAN(replace(config, dropout=0.0)).double().train()
    x = torch.rand(5, 3, 32, 32, dtype=torch.float64) * 255
    together = model(x, Lanes(torch.tensor([0, 1, 2, 3, 4]), (2, 2, 1)), iterations=1)[-1]
    parsing = model(x[:2], Lanes(torch.arange(2), (2, 0, 0)), iterations=1)[-1].parsing_logits
    points = model(x[2:4], Lanes(torch.arange(2), (0, 2, 0)), iterations=1)[-1].points
    torch.testing.assert_close(together.parsing_logits, parsing, rtol=0, atol=1e-9)
    torch.testing.assert_close(together.points, points, rtol=0, atol=1e-9)


def test_one_pass_in_training_lays_pixels_out_by_lane() -> None:
    """Which is what laying the stem's output out by lane gives, sample by sample and in every gradient."""
    torch.manual_seed(0)
    model = IFAN(replace(TINY, iterations=1, dropout=0.0)).train()
    faces, segments = torch.randint(0, 256, (5, 3, 32, 32)), (1, 2, 1)
    lanes = Lanes(torch.tensor([3, 0, 4, 1]), segments)

    def values(found: Predictions) -> list[torch.Tensor]:
        return [found.parsing_logits, found.points, *found.class_logits.values()]

    def gradients(found: Predictions) -> list[torch.Tensor]:
        return list(torch.autograd.grad(sum(v.square().sum() for v in values(found)), list(model.parameters())))

    once = model(faces, lanes, 1)[0]
    image_share = F.conv2d(model.preprocess(faces), model.stem.weight[:, :3], padding=3)
    later = model.iterate(image_share, model.first_planes(), lanes, training=True, later=False)
    assert {name: rows.tolist() for name, rows in once.rows.items()} == {
        "parsing": [3],
        "landmarks": [0, 4],
        "emotion": [1],
    }
    for a, b in zip(values(once) + gradients(once), values(later) + gradients(later), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_a_pass_from_given_planes_is_a_later_one(training: bool) -> None:
    torch.manual_seed(0)
    model = IFAN(replace(TINY, iteration_norm="separate", dropout=0.0)).train(training)
    for name, parameter in model.named_parameters():
        if "later_" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    faces, lanes = torch.randint(0, 256, (4, 3, 32, 32)), Lanes(torch.tensor([3, 0, 2]), (1, 1, 1))
    with torch.no_grad():
        planes = model.encode(model.eval()(faces, iterations=1)[-1], 4)
        given = model.train(training)(faces, lanes, 1, planes=planes)[-1]
        second = model(faces, lanes, 2)[-1]
    torch.testing.assert_close(given.parsing_logits, second.parsing_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given.points, second.points, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given.class_logits, second.class_logits, rtol=1e-4, atol=1e-5)
    assert {name: rows.tolist() for name, rows in given.rows.items()} == {
        "parsing": [3],
        "landmarks": [0],
        "emotion": [2],
    }


def test_what_is_fed_back_turns_from_the_means_into_the_predictions() -> None:
    model, x = network(64), images(64)
    first, second = model(x, iterations=2)
    model.feedback = 0.0
    torch.testing.assert_close(model(x, iterations=2)[-1].points, first.points, rtol=0, atol=1e-6)
    planes = model.encode(first, len(x))
    model.feedback = 0.25
    halfway = model.encode(first, len(x))
    model.feedback = 1.0
    torch.testing.assert_close(halfway, 0.75 * planes + 0.25 * model.encode(first, len(x)))
    assert (second.points - first.points).abs().max() > 1e-4


def test_gradient_crosses_iterations_only_when_asked() -> None:
    for feedback in (False, True):
        model = IFAN(replace(TINY, feedback_gradient=feedback)).train()
        first, second = model(torch.rand(2, 3, 32, 32) * 255, iterations=2)
        assert first.parsing_logits.requires_grad == feedback
        second.parsing_logits.square().sum().backward()
        assert model.class_heads["emotion"].weight.grad is None or feedback


def test_every_iteration_has_the_given_lanes() -> None:
    """Each is what the last one is when the loop ends there."""
    model, x = network(64), torch.cat([images(64), images(64).flip(0) * 0.5])
    lanes = Lanes(torch.tensor([3, 0, 1, 2]), (1, 2, 1))
    every = model(x, lanes, iterations=3, every=True)
    assert len(every) == 3
    for k, found in enumerate(every, 1):
        expected = model(x, lanes, iterations=k)[-1]
        torch.testing.assert_close(found.parsing_logits, expected.parsing_logits, rtol=0, atol=0)
        torch.testing.assert_close(found.points, expected.points, rtol=0, atol=0)
        torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["shared", "statistics", "separate"])
def test_iterations_share_their_normalisation_or_have_their_own(
    kind: Literal["shared", "statistics", "separate"],
) -> None:
    separate = kind != "shared"
    model = IFAN(replace(TINY, normalise_heads=True, iteration_norm=kind)).train()
    x = torch.rand(3, 3, 32, 32) * 255

    def moved(passes: int) -> set[str]:
        """Which kinds of statistics a step of so many passes moves."""
        before = {n: b.clone() for n, b in model.named_buffers()}
        model(x, iterations=passes)
        changed = {n for n, b in model.named_buffers() if not torch.equal(b, before[n])}
        assert len(changed) in (0, sum(n.endswith(("running_mean", "running_var")) for n in before))
        return {n.rpartition(".")[2] for n in changed}

    first, later = {"running_mean", "running_var"}, {"later_mean", "later_var"}
    assert moved(1) == first
    assert moved(2) == (later if separate else first)
    assert (later & {n.rpartition(".")[2] for n, _ in model.named_buffers()} == later) == separate
    model(x, iterations=2)[-1].points.sum().backward()
    norm = model.down_blocks[0].norms[0]
    trained = {name for name, p in norm.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == ({"later_weight", "later_bias"} if kind == "separate" else {"weight", "bias"})


def test_without_task_norm_the_lanes_of_all_tasks_are_normalised_together() -> None:
    """A task's outputs depend on the other tasks' samples, and the network is one with equal rows."""
    model = IFAN(replace(TINY, task_norm=False, dropout=0.0, normalise_heads=False)).double().train()
    assert all(m.weight.shape[0] == 1 for m in model.modules() if isinstance(m, TaskNorm))
    x = torch.rand(5, 3, 32, 32, dtype=torch.float64) * 255
    lanes = Lanes(torch.arange(5), (2, 2, 1))
    norm = model.down_blocks[0].norms[0]
    out = model(x, lanes, iterations=1)[-1]
    share = torch.nn.functional.conv2d(model.preprocess(x), model.stem.weight[:, :3], padding=3)
    stem = share + torch.nn.functional.conv2d(model.first_planes(), model.stem.weight[:, 3:], padding=3)
    torch.testing.assert_close(norm.running_mean[0], 0.01 * stem.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var[0], 0.99 + 0.01 * stem.var((0, 2, 3), correction=0))
    alone = model(x[:2], Lanes(torch.arange(2), (2, 0, 0)), iterations=1)[-1]
    assert (out.parsing_logits - alone.parsing_logits).abs().max() > 1e-3
    model.eval()
    split = fold_training_extras(model)
    assert split.config.task_norm
    torch.testing.assert_close(split(x)[-1].points, model(x)[-1].points, rtol=0, atol=1e-10)


def test_extra_tasks_need_a_configuration_only() -> None:
    smile = TaskConfig("smile", "classification", ("yes", "no"))
    model = IFAN(NetworkConfig(size=32, growth=4, stem_channels=8, up_channels=16, tasks=(*PAPER_TASKS, smile))).eval()
    out = model(torch.rand(2, 3, 32, 32) * 255)
    assert len(out) == 3
    assert out[-1].class_logits["smile"].shape == (2, 2)
    assert out[-1].dense_class_logits(2).shape == (2, len(EMOTIONS) + 2)


@pytest.mark.parametrize("names", [("landmarks",), ("parsing",), ("emotion",), ("landmarks", "emotion")])
def test_any_set_of_tasks(names: tuple[str, ...]) -> None:
    tasks = tuple(t for t in PAPER_TASKS if t.name in names)
    model = IFAN(NetworkConfig(size=64, growth=4, stem_channels=8, up_channels=16, tasks=tasks))
    out = model.train()(torch.rand(2, 3, 64, 64) * 255)[-1]
    assert out.parsing_logits.shape[:2] == ((2, 9) if "parsing" in names else (0, 0))
    assert out.points.shape == ((2, 2, 5) if "landmarks" in names else (0, 2, 0))
    assert set(out.class_logits) == {"emotion"} & set(names)


def test_save_and_load_a_local_folder(tmp_path: Path) -> None:
    model = IFAN(TINY).eval()
    model.save_pretrained(tmp_path)
    again = IFAN.from_pretrained(tmp_path)
    assert again.config == TINY
    x = torch.rand(1, 3, 32, 32) * 255
    assert torch.equal(again(x)[-1].parsing_logits, model(x)[-1].parsing_logits)


def test_wrong_input_says_what_was_expected() -> None:
    model = IFAN(TINY)
    with pytest.raises(ValueError, match=r"images: expected \(B, 3, 32, 32\); got \(1, 3, 64, 64\)"):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="iterations: expected at least 1; got 0"):
        model(torch.zeros(1, 3, 32, 32), iterations=0)
    with pytest.raises(ValueError, match="segments must be non-negative and sum to the number of rows"):
        Lanes(torch.arange(3), (1, 1, 0))


@pytest.mark.parametrize(("name", "size"), [("paper-128", 128), ("paper-64", 64)])
def test_presets_are_the_released_graph(name: str, size: int) -> None:
    with torch.device("meta"):
        assert fold_training_extras(IFAN(load_config(name).network)).config == NetworkConfig(size=size)


def test_what_training_adds_folds_into_the_released_graph() -> None:
    config = NetworkConfig(size=32, growth=4, stem_channels=8, up_channels=16, image_scale=1 / 64, normalise_heads=True)
    model, x = IFAN(config).double(), torch.rand(6, 3, 32, 32) * 255
    for _ in range(3):
        model.train()(x)
    model.eval()
    folded = fold_training_extras(model)
    assert (folded.config.image_scale, folded.config.normalise_heads) == (1.0, False)
    for a, b in zip(model(x), folded(x), strict=True):
        torch.testing.assert_close(a.parsing_logits, b.parsing_logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(a.points, b.points, rtol=0, atol=1e-10)
        torch.testing.assert_close(a.class_logits, b.class_logits, rtol=0, atol=1e-10)
