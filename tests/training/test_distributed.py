"""Two processes over gloo, started as a user would start them: by torchrun."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.evaluate import main as evaluate
from recipes.train import main as train

ROOT = Path(__file__).parents[2]
ARCH = "sk_shufflenetv2_0.5"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find torchrun's workers")

ARGS = [
    "--arch", ARCH, "--device", "cpu", "--set",
    "data.batch_size=200", "data.input_size=32", "schedule.epochs=2", "optim.lr=0.02", "checkpoint.every_minutes=0",
]  # fmt: skip


def torchrun(*args: str, restarts: int = 0, script: str = str(ROOT / "recipes" / "train.py")) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), script, *args]
    # Warnings are errors here, not in torchrun's own code.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        output, _ = process.communicate(timeout=400)
    return process.returncode, output


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "two"
    code, output = finish(torchrun(*ARGS, "--output", str(run)))
    assert code == 0, output
    return run


def test_two_processes_follow_the_curve_of_one(tmp_path: Path, two_processes: Path) -> None:
    alone = tmp_path / "one"
    # Its parts are the two processes' shares: batch norms see the same images.
    assert train([*ARGS, "data.accumulation=2", "--output", str(alone)]) == 0
    for one, two in zip(rows(alone), rows(two_processes), strict=True):
        # The same images, batch statistics and mean gradient (exact in float64, below), summed in another order.
        # Training amplifies float32's rounding: the batch norms of an untrained network divide by variances near 0.
        # After one step single losses differ in the second digit, the mean over an epoch by 0.2 %.
        assert float(two["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=0.02)
        assert two["lr"] == one["lr"]
        # Every test image once.
        assert one["val_images"] == two["val_images"] == "360"


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("gradient_worker.py"))
    code, output = finish(torchrun(str(tmp_path / "two.pt"), script=script))
    assert code == 0, output
    subprocess.run([sys.executable, "-W", "ignore", script, str(tmp_path / "one.pt")], check=True)
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-7, atol=1e-9)


def test_synchronized_batch_norm_is_refused_without_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train([*ARGS, "runtime.sync_bn=true", "--output", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runtime.sync_bn=true needs GPUs, and this is cpu: set runtime.sync_bn=false" in line
    assert not (tmp_path / "run").exists()


def test_a_killed_worker_costs_nothing(tmp_path: Path, two_processes: Path) -> None:
    run = tmp_path / "killed"
    process = torchrun(*ARGS, "--output", str(run), restarts=1)
    try:
        deadline = time.monotonic() + 300
        while not (run / "checkpoint.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(worker(process.pid, rank=1), signal.SIGKILL)
        code, output = finish(process)
    finally:
        process.kill()
    assert code == 0, output
    assert "SIGKILL" in output or "-9" in output
    assert (run / "manifest.json").read_text().count('"command"') == 2
    # Gloo adds two numbers: the order does not matter, and the result is bitwise the uninterrupted one's.
    left, right = load_file(run / "model.safetensors"), load_file(two_processes / "model.safetensors")
    for name, tensor in right.items():
        assert torch.equal(left[name], tensor), name
    assert evaluate(["--checkpoint", str(run)]) == 0


def test_another_number_of_processes_may_resume_if_batch_norm_sees_as_many_images(
    tmp_path: Path, two_processes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "one"
    shutil.copytree(two_processes, run)
    resume = ["--arch", ARCH, "--output", str(run), "--device", "cpu", "--resume", "--set"]
    assert train([*resume, "data.accumulation=1"]) == 2
    assert "images per batch norm (batch_size / processes / accumulation) 100, not 200" in capsys.readouterr().err
    assert train([*resume, "data.accumulation=2"]) == 0


def worker(parent: int, *, rank: int) -> int:
    """Process id of torchrun's worker."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError("torchrun has no such worker")


def test_a_batch_that_does_not_divide_is_refused_by_every_process(tmp_path: Path) -> None:
    code, output = finish(torchrun(*ARGS, "--set", "data.batch_size=201", "--output", str(tmp_path / "run")))
    assert code != 0
    assert "data.batch_size=201 is the batch of all processes together" in output
    # torchrun's own traceback names its files; none of ours may be in one.
    assert 'recipes/train.py", line' not in output
