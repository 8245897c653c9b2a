"""The page on profiling names what there is, and the program its commands run runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from ifan.bench.suite import choose, suite

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: pip install triton", allow_module_level=True)

from tests.gpu.tools import gpu_compile, gpu_profile

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "profiling.md").read_text(encoding="utf-8")
PROGRAM = r"python -m tests\.gpu\.tools\.gpu_profile"
COMMANDS = re.findall(rf"^ncu-ifan -o (\w+) -k 'regex:\^(\w+)\$' {PROGRAM} (.+)$", PAGE, re.M)


def asked(arguments: str) -> tuple[str, str]:
    """Operation and backend of a command's last words."""
    words = [quoted or plain for quoted, plain in re.findall(r"'([^']*)'|(\S+)", arguments)]
    given = gpu_profile.options().parse_args(words)
    return given.op, given.backend


def launched(op: str, backend: str) -> set[str]:
    """Kernels of an operation: those Triton would launch, or those its CUDA source defines."""
    if backend == "cuda":
        source = ROOT / "csrc" / "cuda" / f"{op.split(',')[0]}.cu"
        return set(re.findall(r"__global__[^;{]*?(\w+)\(const __grid_constant__", source.read_text(encoding="utf-8")))
    with gpu_compile.recorded("sm_90") as launches:
        gpu_compile.operations(*gpu_compile.CASES["bf16"])[op]()
    return {launch.kernel.__name__ for launch in launches}


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_every_kernel_has_a_command_and_every_command_a_kernel(backend: str) -> None:
    named: dict[str, set[str]] = {}
    for _, kernel, arguments in COMMANDS:
        op, which = asked(arguments)
        if which == backend:
            named.setdefault(op, set()).add(kernel)
    ops = gpu_profile.OPERATIONS if backend == "triton" else gpu_compile.CUDA
    there = {op: launched(op, backend) for op in ops}
    assert there
    assert all(there.values())
    for op, kernels in named.items():
        assert kernels <= launched(op, backend), op
    assert set().union(*named.values()) == set().union(*there.values())


def test_reports_have_names_of_their_own() -> None:
    names = [name for name, _, _ in COMMANDS]
    assert len(COMMANDS) == len(re.findall("^ncu-ifan ", PAGE, re.M)) > 20
    assert len(set(names)) == len(names)


def test_rows_and_ranges_on_the_page_exist() -> None:
    patterns = re.findall(r"--only '([^']+)'", PAGE)
    assert patterns
    for pattern in patterns:
        assert len(choose(suite(), pattern)) == 1, pattern
    network = (ROOT / "ifan" / "network.py").read_text(encoding="utf-8")
    for name in re.findall(r'span\(f?"([\w -]+?)(?: \{.*)?"\)', network):
        assert f"`{name}" in PAGE


def test_without_a_gpu_it_is_one_line() -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_profile.main(["transition_up", "--backend", "cuda"])
    assert stopped.value.code == (
        "gpu_profile: backend cuda has integrate, hybrid_loss, dense_block; got transition_up. Use --backend triton."
    )
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit) as stopped:
            gpu_profile.main(["integrate"])
        assert stopped.value.code == gpu_profile.NO_GPU


def test_it_runs_an_operation_so_often() -> None:
    with gpu_compile.recorded("sm_90") as launches, torch.profiler.profile() as profiler:
        gpu_profile.main(["channel_moments", "--size", "16", "--batch", "1", "--repeats", "2"], device="cpu")
    names = [launch.kernel.__name__ for launch in launches]
    assert set(names) == {"partial_kernel", "join_kernel", "backward_kernel"}
    assert names == 2 * names[: len(names) // 2]
    assert [event.name for event in profiler.events() or []].count("channel_moments") == 2
