"""Whether the Triton kernels are right on this machine's GPU, and how fast; needs PyTorch, Triton and the CUDA toolkit.

    make gpu-check

Every operation, forward and backward, in float32, float16 and bfloat16 against float64; 100 equal runs; the network
against the reference, and its CUDA graphs against it; compute-sanitizer's memcheck and racecheck; the time beside eager
PyTorch and torch.compile. All goes to ``build/gpu_check.json``. Only where nothing failed is ``ifan/_gpu_check.json``
written, by which backend ``auto`` takes the kernels.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[3]
REPORT = ROOT / "build" / "gpu_check.json"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RUNS = 100
SUMMARIES = {
    "memcheck": r"ERROR SUMMARY: (\d+) errors?",
    "racecheck": r"RACECHECK SUMMARY: (\d+) hazards? displayed",
}
NO_GPU = (
    "gpu-check: expected a machine with a GPU; torch.cuda.is_available() is False. Run it where nvidia-smi lists one."
)


def values(device: str, names: Sequence[str] | None = None, backend: str = "triton") -> list[str]:
    """Results and gradients that are further from the reference in float64 than their dtype allows."""
    problems, samples = _problems(device)
    faults = []
    for name in names or list(problems.PROBLEMS):
        inference = backend == "cuda" and name.startswith("dense_block")  # no backward, no float32
        results = _outputs if inference else problems.results
        for dtype in DTYPES[inference:]:
            problem = problems.PROBLEMS[name]()
            inputs = problem.arranged(dtype)
            found = results(problem, backend, inputs)
            exact = [x.detach().double().requires_grad_() for x in inputs]
            bound = samples.VECTOR_ERROR[dtype] * (1 if dtype == torch.float32 else 2)
            for index, (x, wanted) in enumerate(zip(found, results(problem, "reference", exact), strict=True)):
                error, norm = float((x.double() - wanted).norm()), float(wanted.norm())
                if not error <= bound * norm:
                    where = f"{name}, {backend}, {dtype}, result {index}"
                    faults.append(f"{where}: error {error:.3g} of {norm:.3g}, above {bound:g}")
    return faults


@torch.no_grad()
def _outputs(problem: Any, backend: str, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    found = problem.run(backend, *inputs)
    return [x for x in found if x.numel()] if isinstance(found, tuple) else [found]


def cuda_values(device: str) -> list[str]:
    """The same for the kernels in CUDA C++, where they were built: what they have of the operations."""
    from ifan.ops.native import cuda_refusal

    problems, _ = _problems(device)
    names = [n for n in problems.PROBLEMS if n.startswith(("integrate", "hybrid_loss", "dense_block"))]
    return [] if cuda_refusal() else values(device, names, "cuda")


def repetition(device: str, names: list[str] | None = None, runs: int = RUNS) -> list[str]:
    """Operations of which two runs gave different bits."""
    problems, _ = _problems(device)
    faults = []
    for name in names or list(problems.PROBLEMS):
        problem = problems.PROBLEMS[name]()
        inputs = problem.arranged(torch.float32)
        first = problems.results(problem, "triton", inputs)
        for _ in range(runs - 1):
            again = problems.results(problem, "triton", inputs)
            if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
                faults.append(f"{name}: two runs differ")
                break
    return faults


def network(device: str) -> list[str]:
    """Outputs (inference) and gradients (training) of a small network, kernels against the reference."""
    from ifan.ops import use_backend

    (model, images), faults = _small_network(device), []
    for training in (False, True):
        model.eval().requires_grad_(training)
        found = {}
        for backend in ("reference", "triton"):
            model.zero_grad()
            with use_backend(backend):
                out = [v for v in vars_of(model(images)[-1]) if v.numel()]
                if training:
                    torch.stack([v.square().mean() for v in out]).sum().backward()
                    out += [p.grad for p in model.parameters() if p.grad is not None]
            found[backend] = [v.detach() for v in out]
        worst = max(
            float((a - b).norm() / b.norm().clamp_min(1e-6))
            for a, b in zip(found["triton"], found["reference"], strict=True)
        )
        if not worst < 1e-3:
            faults.append(f"network, {'training' if training else 'inference'}: relative error {worst:.3g}, above 1e-3")
    return faults


def graphs(device: str, backends: Sequence[str] = ("reference", "triton"), replaced: Any = None) -> list[str]:
    """Whether replayed CUDA graphs give what the network gives, for the operations' backends and both precisions;
    ``replaced`` stands for `ifan.cuda_graph.CudaDevice` where there is no GPU."""
    from ifan.cuda_graph import GraphRunner, in_bfloat16
    from ifan.ops import use_backend

    (network, _), faults = _small_network(device), []
    for backend in backends:
        for model in (network.eval(), in_bfloat16(network).eval()):
            name, bound = f"graphs, {backend}, {model.stem.weight.dtype}", 1e-4 if model is network else 3e-2
            with use_backend(backend), torch.inference_mode():
                runner = GraphRunner(model, 1, device=replaced)
                for count in (3, 4, 2):
                    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, device=device)
                    found = [v for _ in range(2) for v in vars_of(runner(images))]
                    wanted = 2 * vars_of(model(images, None, 1)[-1])
                    pairs = [(a.float(), b.float()) for a, b in zip(found, wanted, strict=True)]
                    error = max(float((a - b).norm() / b.norm().clamp_min(1e-6)) for a, b in pairs)
                    if not error < bound:
                        faults.append(f"{name}, {count} faces: relative error {error:.3g}, above {bound:g}")
            if runner.failed:
                faults.append(f"{name}: could not be recorded")
    return faults


def _small_network(device: str) -> tuple[Any, torch.Tensor]:
    from ifan.config import NetworkConfig
    from ifan.network import IFAN

    torch.manual_seed(0)
    with torch.device(device):
        model = IFAN(NetworkConfig(size=32, growth=4, stem_channels=8, up_channels=16, iterations=1))
        return model, torch.randint(0, 256, (2, 3, 32, 32)).float()


def vars_of(predictions: Any) -> list[torch.Tensor]:
    """The tensors of a network's predictions."""
    return [v for name in predictions.__dataclass_fields__ if isinstance(v := getattr(predictions, name), torch.Tensor)]


def sanitizer(tool: str) -> list[str]:
    """Faults compute-sanitizer finds while every operation runs once."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return [f"{tool}: compute-sanitizer is not on PATH; it comes with the CUDA toolkit"]
    command = [program, "--tool", tool, sys.executable, "-m", "tests.gpu.tools.gpu_check", "--values"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return summary_faults(tool, done.stdout + done.stderr, done.returncode)


def summary_faults(tool: str, output: str, code: int) -> list[str]:
    """What is wrong with a run of compute-sanitizer: no summary line, a count above 0, or a failed program."""
    counts = re.findall(SUMMARIES[tool], output)
    if not counts:
        return [f"{tool}: it printed no summary line, so it has checked nothing"]
    if any(int(count) for count in counts):
        return [f"{tool}: {', '.join(counts)} faults; run compute-sanitizer --tool {tool} to see them"]
    return [f"{tool}: the program under it ended with {code}"] if code else []


def timings(device: str) -> list[dict[str, Any]]:
    """Median milliseconds of forward and backward on maps of the network, bfloat16."""
    from ifan import ops
    from ifan.concat import Concat, Lanes, Norm

    with torch.device(device):
        x = [torch.randn(32, 64, 64, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
        norm = [torch.rand(1, 128, requires_grad=True) for _ in range(4)]
        fused = Concat.of(Lanes.ordered([32], device), *x)
        logits = torch.randn(32, 11, 64, 64, dtype=torch.bfloat16)
        point, none = torch.zeros(32, 2, 5), torch.zeros(32, 0)

    def step(run: Callable[..., torch.Tensor]) -> Callable[[], None]:
        return lambda: run().float().sum().backward()

    rows = []
    for name, call in {
        "integrate": lambda backend: ops.integrate(fused, Norm.from_flat(norm), backend=backend),
        "channel_moments": lambda backend: ops.channel_moments(x[0], [32], backend=backend)[1],
        "encode_predictions": lambda backend: ops.encode_predictions(
            logits.requires_grad_(), point, none, [], backend=backend
        ),
    }.items():
        fast = torch.compile(lambda call=call: call("reference"), mode="max-autotune-no-cudagraphs")
        runs = {
            "eager": lambda call=call: call("reference"),
            "compile": fast,
            "triton": lambda call=call: call("triton"),
        }
        rows.append({"op": name, **{f"{kind} ms": _median(step(run)) for kind, run in runs.items()}})
    return [*rows, _inference_row(device)]


@torch.inference_mode()
def _inference_row(device: str, faces: int = 32) -> dict[str, Any]:
    """Median milliseconds of three iterations on 32 faces of 128 pixels, bfloat16: the network alone and replayed."""
    from ifan.config import NetworkConfig
    from ifan.cuda_graph import GraphRunner, in_bfloat16
    from ifan.network import IFAN
    from ifan.ops import use_backend

    model = in_bfloat16(IFAN(NetworkConfig()).eval()).to(device)
    images = torch.randint(0, 256, (faces, 3, 128, 128), dtype=torch.uint8, device=device)
    row: dict[str, Any] = {"op": f"network, {faces} faces"}
    for backend, name in (("reference", "eager"), ("triton", "triton")):
        runner = GraphRunner(model)
        with use_backend(backend):
            row[f"{name} ms"] = _median(partial(model, images))
            row[f"{name}, graph ms"] = _median(partial(runner, images))
    return row


def _median(run: Callable[[], Any], repeats: int = 50) -> float:
    times = []
    for index in range(repeats + 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if index >= 5:
            times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def _problems(device: str) -> tuple[Any, Any]:
    """Sample problems on ``device``, which becomes the default one before they are made."""
    torch.set_default_device(device)
    torch.manual_seed(0)
    from tests.gpu import problems
    from tests.support import samples

    return problems, samples


STEPS: dict[str, Callable[[], list[str]]] = {
    "values": lambda: values("cuda"),
    "cuda values": lambda: cuda_values("cuda"),
    "repetition": lambda: repetition("cuda"),
    "network": lambda: network("cuda"),
    "graphs": lambda: graphs("cuda"),
    "memcheck": lambda: sanitizer("memcheck"),
    "racecheck": lambda: sanitizer("racecheck"),
}


def check(report: Path, record: Path, gpu: str) -> list[str]:
    """Run every step, write the report, and the record only if nothing failed; the faults."""
    from ifan.ops.native import cuda_refusal

    steps, faults = {}, []
    record.unlink(missing_ok=True)
    for name, step in STEPS.items():
        start = time.perf_counter()
        try:
            found = step()
        except Exception as error:
            found = [f"{name}: {type(error).__name__}: {error}"]
        steps[name] = {"faults": found, "seconds": round(time.perf_counter() - start, 1)}
        print(f"{name}: {len(found)} faults, {steps[name]['seconds']} s", flush=True)
        faults += found
    made = {
        "gpu": gpu,
        "torch": torch.__version__,
        "without cuda": cuda_refusal(),
        "steps": steps,
        "timings": [] if faults else timings("cuda"),
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if not faults:
        passed = ["triton", "graphs", *([] if cuda_refusal() else ["cuda"])]
        record.write_text(json.dumps(dict.fromkeys(passed, gpu)) + "\n", encoding="utf-8")
    return faults


def main() -> None:
    """Check this machine's GPU; exit 1 with the faults, 2 where there is no GPU."""
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        raise SystemExit(2)
    if "--values" in sys.argv:
        raise SystemExit("\n".join(values("cuda") + cuda_values("cuda")) or 0)
    from ifan.ops.gpu import RECORD

    faults = check(REPORT, RECORD, torch.cuda.get_device_name())
    print(*faults, f"report: {REPORT.relative_to(ROOT)}", sep="\n")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
