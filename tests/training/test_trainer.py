import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ifan.config import Config
from ifan.data.mixture import label_means
from ifan.network import IFAN
from ifan.refine import moved
from ifan.torch_runner import face_predictions, torch_predictions
from ifan.training import CheckpointError, RunOptions, Trainer, build_model, load_weights
from ifan.training import trainer as module
from ifan.training.checkpoint import checkpoints
from ifan.training.model import load_fitting
from ifan.weights import load_network, publish
from tests.support.faces import Faces, small_config, three_datasets

FILES = ("model", "ema", "optimizer")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def run_config() -> Config:
    """What is resumed: a learned weighting, dropout, a random number of passes, their running statistics."""
    config = small_config(steps=60, weighting="famo", supervise="all")
    return replace(config, network=replace(config.network, iteration_norm="separate"))


def main(out: Path) -> None:
    """Train until killed without warning after the 27th step."""
    torch.set_num_threads(1)
    trainer = Trainer(run_config(), three_datasets(), out)
    step = trainer.step

    def killed_later(batch: module.Batch) -> module.StepResult:
        if trainer.done == 27:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(batch)

    trainer.step = killed_later  # type: ignore[method-assign]
    trainer.run()


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """60 straight steps = 25 kept of a run that was killed + 35, bit for bit, on three datasets."""
    command = [sys.executable, "-m", "tests.training.test_trainer", str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    Trainer(run_config(), three_datasets(), tmp_path / "straight").run()
    assert first.wait(timeout=240) == -signal.SIGKILL
    assert [c.name for c in checkpoints(tmp_path / "killed" / "checkpoints")] == ["step-00000025"]
    capsys.readouterr()
    resumed = Trainer(run_config(), three_datasets(), tmp_path / "killed", resume=True)
    assert "continuing after step 25\n" in capsys.readouterr().out
    resumed.run()
    for name in FILES:
        one, two = (
            load_file(tmp_path / f / f"checkpoints/step-00000060/{name}.safetensors") for f in ("straight", "killed")
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one)
    one, two = (load_file(tmp_path / f / "model/model.safetensors") for f in ("straight", "killed"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    rows = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [*range(3, 25, 3), *range(27, 61, 3)]


def test_a_task_missing_from_a_batch(tmp_path: Path) -> None:
    """A share of one sample in ten steps: most batches lack parsing; its loss is 0, the rest trains."""
    config = small_config(steps=3, batch_size=4, shares={"points": 9.0, "parts": 1.0, "moods": 30.0}, iterations=(1.0,))
    trainer = Trainer(config, three_datasets(), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    present = []
    for step in range(3):
        batch = trainer.mixture.batch(step)
        result = trainer.step(batch)
        present.append(result.present.tolist())
        assert result.losses[~result.present].tolist() == [0.0] * int((~result.present).sum())
    assert [True, True, True] not in present
    after = trainer.model.state_dict()
    assert not torch.equal(before["stem.weight"], after["stem.weight"])
    assert all(torch.isfinite(v).all() for v in after.values())


def test_a_loss_on_every_iteration(tmp_path: Path) -> None:
    """The step's losses are the mean over its passes, and the first one's has a gradient of its own."""
    config = small_config(steps=1, iterations=(0.0, 1.0), supervise="all")
    config = replace(config, network=replace(config.network, dropout=0.0))
    trainer = Trainer(config, three_datasets(), tmp_path)
    batch = trainer.mixture.batch(0)
    passes = copy.deepcopy(trainer.model).train()(batch.images, batch.lanes, 2, every=True)
    each = [trainer.hybrid_loss(p, batch).losses for p in passes]
    assert (each[1] - each[0])[0].abs() > 1e-3 * each[0][0]
    torch.testing.assert_close(trainer.step(batch).losses, (each[0] + each[1]).detach() / 2)
    assert torch.autograd.grad(each[0].sum(), passes[0].parsing_logits)[0].abs().sum() > 0


def test_a_closer_crop_is_trained_from_what_the_iteration_before_finds(tmp_path: Path) -> None:
    """Which comes without gradient, and through the warm-up in part only."""
    config = small_config(steps=3, refine_share=1.0, feedback_warmup=2, iterations=(1.0,))
    config = replace(config, network=replace(config.network, dropout=0.0, iteration_norm="separate"))
    trainer = Trainer(config, three_datasets(), tmp_path)
    for step, share in enumerate((0.5, 1.0, 1.0)):
        batch, model = trainer.mixture.batch(step), copy.deepcopy(trainer.model)
        assert batch.earlier is not None
        with torch.no_grad():
            found = model.eval()(batch.earlier, iterations=1)[-1]
            begun = torch_predictions(moved(model.config, face_predictions(found), batch.reframed))
            planes = model.first_planes().lerp(model.encode(begun, len(batch.reframed)), share)
        expected = trainer.hybrid_loss(model.train()(batch.images, batch.lanes, 1, planes=planes)[-1], batch)
        before = {name: value.clone() for name, value in trainer.model.named_buffers()}
        torch.testing.assert_close(trainer.step(batch).losses, expected.losses.detach(), rtol=1e-4, atol=1e-5)
        changed = {n for n, value in trainer.model.named_buffers() if not torch.equal(value, before[n])}
        assert {name.rpartition(".")[2] for name in changed} == {"later_mean", "later_var"}
        assert trainer.model.feedback == share
        trainer.model.feedback = 1.0  # of the copies above


@pytest.mark.parametrize(("share", "reframe", "passes"), [(0.0, True, 1), (0.5, True, 2), (0.0, False, 1)])
def test_predictions_make_no_more_passes_than_training(
    share: float, reframe: bool, passes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def validate(model: IFAN, passes: int) -> dict[str, dict[str, float | None]]:
        seen.append(passes)
        return {}

    config = small_config(steps=1, refine_share=share, iterations=(1.0, 0.0))
    config = replace(config, network=replace(config.network, reframe=reframe, iterations=2))
    Trainer(config, three_datasets(), tmp_path, options=RunOptions(validate=validate)).run()
    assert seen == [passes]
    assert ("training makes at most 1 of the network's 2 passes" in capsys.readouterr().out) == (passes == 1)


def test_datasets_plug_in_and_out(tmp_path: Path) -> None:
    Trainer(small_config(steps=1), {"moods": Faces("emotion", 5)}, tmp_path / "one").run()
    assert (tmp_path / "one" / "model" / "model.safetensors").exists()


def test_heads_begin_at_the_label_means() -> None:
    config = small_config()
    model = build_model(config, three_datasets()).eval()  # type: ignore[arg-type]
    parsing, points, classes = label_means(three_datasets(), config.network)
    torch.testing.assert_close(model.mean_parsing, parsing)
    with torch.no_grad():
        predictions = model(torch.randint(0, 255, (2, 3, 32, 32)), iterations=1)[0]
    torch.testing.assert_close(predictions.points, points.expand(2, -1, -1))
    torch.testing.assert_close(predictions.class_logits["emotion"].softmax(1), classes.expand(2, -1), atol=1e-3, rtol=0)


def test_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="the folder is not empty; continue that run with --resume"):
        Trainer(small_config(), three_datasets(), tmp_path)
    with pytest.raises(ValueError, match=r"has no config\.yaml"):
        Trainer(small_config(), three_datasets(), tmp_path, resume=True)
    with pytest.raises(ValueError, match="got a file"):
        Trainer(small_config(), three_datasets(), tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_is_left_behind_by_a_run_that_cannot_begin(tmp_path: Path) -> None:
    faces = {"moods": Faces("emotion", 0)}
    with pytest.raises(ValueError, match="no samples"):
        Trainer(small_config(), faces, tmp_path / "run")
    with pytest.raises(ValueError, match="expected cpu, cuda"):
        Trainer(small_config(), three_datasets(), tmp_path / "run", device="abacus")
    assert not (tmp_path / "run").exists()


def test_resume_passes_over_a_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(small_config(), three_datasets(), tmp_path)
    for step in (2, 4):
        trainer.done = step
        trainer.save()
    trainer.lock.release()
    newest = tmp_path / "checkpoints" / "step-00000004" / "ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = Trainer(small_config(learning_rate=1e-4), three_datasets(), tmp_path, resume=True)
    assert resumed.done == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("ema.safetensors: damaged (checksum differs); trying the checkpoint before it")
    assert lines[1] == "continuing after step 2; changed: training.learning_rate"
    resumed.lock.release()
    for checkpoint in checkpoints(tmp_path / "checkpoints"):
        (checkpoint / "state.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        Trainer(small_config(), three_datasets(), tmp_path, resume=True)


def test_a_folder_has_one_trainer(tmp_path: Path) -> None:
    first = Trainer(small_config(steps=2), three_datasets(), tmp_path / "run")
    written = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match="another process is writing there"):
        Trainer(small_config(steps=3), three_datasets(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == written
    first.run()
    assert Trainer(small_config(steps=3), three_datasets(), tmp_path / "run", resume=True).done == 2


def test_a_run_that_began_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found no folder; the other one was faster, and has ended."""
    real = module.build_model

    def slow(*arguments: object) -> IFAN:
        monkeypatch.setattr(module, "build_model", real)
        Trainer(small_config(steps=1), three_datasets(), tmp_path / "run").run()
        return real(*arguments)

    monkeypatch.setattr(module, "build_model", slow)
    with pytest.raises(ValueError, match="the folder is not empty"):
        Trainer(small_config(steps=2), three_datasets(), tmp_path / "run")


def test_resume_with_another_network(tmp_path: Path) -> None:
    Trainer(small_config(), three_datasets(), tmp_path).save()
    config = small_config()
    for network, said in (
        (replace(config.network, growth=6), "does not fit this run: '.*' should be"),
        (replace(config.network, block_layers=2), "is not part of it"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            Trainer(replace(config, network=network), three_datasets(), tmp_path, resume=True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_with_a_checkpoint(tmp_path: Path, number: int) -> None:
    trainer = Trainer(small_config(), three_datasets(), tmp_path)
    step, before = trainer.step, signal.getsignal(number)

    def signalled(batch: module.Batch) -> module.StepResult:
        os.kill(os.getpid(), number)
        return step(batch)

    trainer.step = signalled  # type: ignore[method-assign]
    assert trainer.run() == number
    assert [c.name for c in checkpoints(tmp_path / "checkpoints")] == ["step-00000001"]
    assert not (tmp_path / "model").exists()
    assert signal.getsignal(number) is before


def test_time_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(small_config(), three_datasets(), tmp_path, options=RunOptions(quiet=True))
    assert trainer.run(time_limit=0) is None
    assert capsys.readouterr().out == ""
    assert trainer.done == 1
    assert len(checkpoints(tmp_path / "checkpoints")) == 1


def test_released_model_holds_the_averaged_weights(tmp_path: Path) -> None:
    seen = {}

    def validate(model: IFAN, passes: int) -> dict[str, dict[str, float | None]]:
        seen.update({k: v.clone() for k, v in model.state_dict().items()}, passes=passes)
        return {"points/landmarks": {"nme": 0.5}}

    trainer = Trainer(
        small_config(steps=2, iterations=(0.0, 1.0, 0.0)),
        three_datasets(),
        tmp_path,
        options=RunOptions(validate=validate),
    )
    trainer.run()
    assert seen.pop("passes") == 2
    loaded = IFAN.from_pretrained(tmp_path / "model")
    assert loaded.config == trainer.config.network
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, trainer.ema.shadow[key])
        assert torch.equal(value, seen[key])
    assert not torch.equal(loaded.stem.weight, trainer.model.stem.weight)


def test_initial_weights(tmp_path: Path) -> None:
    config = small_config()
    torch.manual_seed(5)
    other = IFAN(config.network)
    other.save_pretrained(tmp_path / "given")
    trainer = Trainer(config, three_datasets(), tmp_path / "run", options=RunOptions(tmp_path / "given"))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in trainer.model.state_dict().items())
    assert torch.equal(trainer.ema.shadow["stem.weight"], other.stem.weight)
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"odd.safetensors: does not fit this network"):
        load_weights(other, tmp_path / "odd.safetensors")


def test_what_fits_of_a_network_of_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Convolutions and normalisation come from the weights; means and dense heads are made as in a fresh run."""
    config = small_config()
    torch.manual_seed(5)
    other = IFAN(replace(config.network, image_scale=0.5))
    other.mean_points.fill_(0.3)
    other.down_blocks[0].norms[0].running_mean.fill_(2.0)
    other.save_pretrained(tmp_path / "given")
    larger = replace(config, network=replace(config.network, size=64, normalise_heads=True, iteration_norm="separate"))
    model = Trainer(
        larger, three_datasets(), tmp_path / "run", options=RunOptions(tmp_path / "given", partial=True)
    ).model
    fresh = build_model(larger, three_datasets())  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert "left as in a fresh run: class_heads.emotion, landmark_head, mean_classes, mean_parsing, mean_points" in out
    state, begun, given = model.state_dict(), fresh.state_dict(), other.state_dict()
    for name, value in state.items():
        if name.startswith(("mean_", "landmark_head", "class_heads")):
            assert torch.equal(value, begun[name]), name
        elif name != "stem.weight":
            assert torch.equal(
                value,
                given[
                    name.replace(".later_mean", ".running_mean")
                    .replace(".later_var", ".running_var")
                    .replace(".later_", ".")
                ],
            ), name
    torch.testing.assert_close(model.stem.weight[:, 3:], other.stem.weight[:, 3:])
    torch.testing.assert_close(model.stem.weight[:, :3], other.stem.weight[:, :3] / 2)


@pytest.mark.parametrize("kinds", [("dense", "heat_maps"), ("heat_maps", "dense"), ("heat_maps", "heat_maps")])
def test_a_landmark_head_of_the_other_kind_is_made_anew(
    kinds: tuple[Literal["dense", "heat_maps"], Literal["dense", "heat_maps"]], tmp_path: Path
) -> None:
    config = small_config()
    given, own = (replace(config.network, landmark_head=kind, normalise_heads=True) for kind in kinds)
    IFAN(given).save_pretrained(tmp_path)
    config = replace(config, network=replace(own, iteration_norm="separate"))
    model = build_model(config, three_datasets())  # type: ignore[arg-type]
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    fitting = load_fitting(model, tmp_path)
    same = kinds[0] == kinds[1]
    assert not fitting.heads
    assert ("landmark_head" in str(fitting)) != same
    changed = [not torch.equal(v, fresh[k]) for k, v in model.state_dict().items() if k.startswith("landmark_head")]
    assert any(changed) == same


@pytest.mark.parametrize("kind", ["dense", "heat_maps"])
def test_weights_go_on_with_more_points(kind: Literal["dense", "heat_maps"], tmp_path: Path) -> None:
    """Known points stay where they are, wherever they stand in the new list; new ones begin as in a fresh run."""
    config = small_config()
    given = replace(config.network, landmark_head=kind, reframe=True, iterations=1)
    known = IFAN(given)
    torch.nn.init.normal_(known.mean_points, std=0.1)
    known.save_pretrained(tmp_path)
    more = ("left_eye", "right_eye", "nose", "left_mouth_corner", "right_mouth_corner", "left_ear", "right_ear")
    tasks = tuple(replace(t, classes=more, drawn=5) if t.kind == "landmarks" else t for t in given.tasks)
    model = build_model(replace(config, network=replace(given, tasks=tasks)), None)
    torch.manual_seed(1)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    load_fitting(model, tmp_path)
    for buffer in ("mean_parsing", "mean_classes"):
        model.get_buffer(buffer).copy_(known.get_buffer(buffer))
    model.mean_points[:, :5] = known.mean_points
    images = torch.randint(0, 256, (2, 3, given.image_size, given.image_size)).float()
    with torch.no_grad():
        (found,), (expected,) = model.eval()(images, None, 1), known.eval()(images, None, 1)
    torch.testing.assert_close(found.points[:, :, :5], expected.points)
    torch.testing.assert_close(found.parsing_logits, expected.parsing_logits)
    head = "landmark_head.weight" if kind == "dense" else "landmark_head.levels.0.convolutions.0.weight"
    rows = model.state_dict()[head].unflatten(0, (-1, 7))[:, 5:]
    assert torch.equal(rows, fresh[head].unflatten(0, (-1, 7))[:, 5:])


def test_other_points_drawn_are_other_weights(tmp_path: Path) -> None:
    config = small_config()
    IFAN(config.network).save_pretrained(tmp_path)
    tasks = tuple(
        replace(t, classes=(*t.classes, "chin")) if t.kind == "landmarks" else t for t in config.network.tasks
    )
    model = build_model(replace(config, network=replace(config.network, tasks=tasks)), None)
    with pytest.raises(ValueError, match="begin from weights of the same tasks"):
        load_fitting(model, tmp_path)


def test_heat_maps_begin_flat() -> None:
    config = small_config()
    model = build_model(replace(config, network=replace(config.network, landmark_head="heat_maps")), three_datasets())  # type: ignore[arg-type]
    size = config.network.image_size
    with torch.no_grad():
        points = model.eval()(torch.rand(1, 3, size, size) * 255, iterations=1)[-1].points
    assert float(points.abs().max()) < 1e-6


def test_published_weights_are_trained_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head's normalisation was folded into its weights; begun from them it has one again, and computes the same."""
    plain = small_config()
    norms = {"image_scale": 1 / 64, "normalise_heads": True, "iteration_norm": "separate"}
    config = replace(plain, network=replace(plain.network, iterations=1, **norms))
    torch.manual_seed(5)
    other = IFAN(config.network)
    images = 255 * torch.rand(8, 3, 32, 32)
    for _ in range(40):
        other(images)
    other.save_pretrained(tmp_path / "trained")
    publish(tmp_path / "trained", tmp_path / "published")
    expected = load_network(tmp_path / "published")
    model = Trainer(
        config, three_datasets(), tmp_path / "run", options=RunOptions(tmp_path / "published", partial=True)
    ).model
    assert "left as in a fresh run: mean_classes, mean_parsing, mean_points\n" in capsys.readouterr().out
    for name in ("mean_parsing", "mean_points", "mean_classes"):
        getattr(model, name).copy_(getattr(expected, name))
    with torch.no_grad():
        (found,), (wanted,) = (network.eval()(images, None, 1) for network in (model, expected))
    torch.testing.assert_close(found.points, wanted.points, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.class_logits["emotion"], wanted.class_logits["emotion"], rtol=1e-4, atol=1e-4)
    norm = model.landmark_head.norm
    assert norm is not None
    assert norm.running_mean.abs().max() > 0.01
    assert torch.equal(norm.running_mean, norm.later_mean)


def test_begun_from_unfolded_weights_a_network_sees_the_means_of_blocks(tmp_path: Path) -> None:
    config = small_config()
    other = IFAN(config.network).eval()
    other.save_pretrained(tmp_path / "given")
    folded = build_model(replace(config, network=replace(config.network, image_fold=3, image_scale=0.5)), None).eval()
    taken = load_fitting(folded, tmp_path / "given")
    assert set(taken.left) == {"mean_parsing", "mean_points", "mean_classes"}
    images = torch.randint(0, 256, (2, 3, 96, 96)).float()
    (found,), (expected,) = folded(images, None, 1), other(F.avg_pool2d(images, 3), None, 1)
    for actual, wanted in (
        (found.parsing_logits, expected.parsing_logits),
        (found.points, expected.points),
        (found.class_logits["emotion"], expected.class_logits["emotion"]),
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


def test_a_folded_network_learns_from_labels_of_its_images_size(tmp_path: Path) -> None:
    config = small_config()
    config = replace(config, network=replace(config.network, image_fold=2))
    trainer = Trainer(config, three_datasets(), tmp_path)
    batch = trainer.mixture.batch(0)
    assert batch.images.shape[2:] == batch.parsing_target.shape[1:] == (64, 64)
    before = trainer.model.parsing_head.weight.clone()
    trainer.step(batch)
    assert not torch.equal(trainer.model.parsing_head.weight, before)


def test_weights_of_which_nothing_can_be_taken(tmp_path: Path) -> None:
    config = small_config()
    IFAN(replace(config.network, growth=6, stem_channels=12, up_channels=12)).save_pretrained(tmp_path / "wide")
    narrow = build_model(replace(config, network=replace(config.network, tasks=config.network.tasks[:2])), None)
    with pytest.raises(
        ValueError, match=r"its tasks are .*'emotion'.* this network's differ: \['parsing', 'landmarks'\]"
    ):
        load_fitting(narrow, tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"wide: only .* convolution weights fit this network"):
        load_fitting(build_model(config, None), tmp_path / "wide")
    with pytest.raises(ValueError, match="--partial says how much of --init"):
        Trainer(config, three_datasets(), tmp_path / "run", options=RunOptions(partial=True))
    assert not (tmp_path / "run").exists()


def test_only_some_parameters_are_trained(tmp_path: Path) -> None:
    """Others stay as they begin, bit for bit, in the checkpoint's average too; and a resumed run goes on."""
    config = small_config(steps=4, checkpoint_every=2, only=("encoders", "later_"), supervise="all", iterations=(0, 1))
    config = replace(config, network=replace(config.network, iteration_norm="separate", iterations=2))
    trainer = Trainer(config, three_datasets(), tmp_path / "run")
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    after = load_file(tmp_path / "run/model/model.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert changed <= {name for name in before if "encoders" in name or "later_" in name}
    assert any("encoders" in name for name in changed)
    assert any("later_" in name for name in changed)
    (tmp_path / "run/model").rename(tmp_path / "straight")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
    Trainer(config, three_datasets(), tmp_path / "run", resume=True).run()
    again = load_file(tmp_path / "run/model/model.safetensors")
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_only_names_no_parameter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.only: no parameter's name holds 'encoder_'"):
        Trainer(small_config(only=("encoder_",)), three_datasets(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_gradient_that_is_not_finite(tmp_path: Path) -> None:
    trainer = Trainer(small_config(), three_datasets(), tmp_path)
    with torch.no_grad():
        trainer.model.stem.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="step 1: the gradient is not finite"):
        trainer.step(trainer.mixture.batch(0))


def test_half_precision_step(tmp_path: Path) -> None:
    trainer = Trainer(small_config(precision="bf16"), three_datasets(), tmp_path)
    single = Trainer(small_config(), three_datasets(), tmp_path / "single")
    half, full = (t.step(t.mixture.batch(0)).losses for t in (trainer, single))
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)
    assert not torch.equal(half, full)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
