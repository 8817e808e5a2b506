"""Two processes over gloo, started as a user would start them: by torchrun."""

from __future__ import annotations

import csv
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from edge_sk.training.data import make_shard
from edge_sk.training.distributed import World
from edge_sk.training.plan import start
from recipes.evaluate import main as evaluate
from recipes.planning import make_plan
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


def wait_for(file: Path, *processes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not file.exists():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_same_weights(run: Path, uninterrupted: Path) -> None:
    # Gloo adds two numbers: the order does not matter, and the result is bitwise the uninterrupted one's.
    left, right = load_file(run / "model.safetensors"), load_file(uninterrupted / "model.safetensors")
    for name, tensor in right.items():
        assert torch.equal(left[name], tensor), name


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
        wait_for(run / "checkpoint.pt", process)
        os.kill(workers(process.pid)[1], signal.SIGKILL)
        code, output = finish(process)
    finally:
        process.kill()
    assert code == 0, output
    assert "SIGKILL" in output or "-9" in output
    assert (run / "manifest.json").read_text().count('"command"') == 2
    assert_same_weights(run, two_processes)
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


def workers(agent: int) -> dict[int, int]:
    """Process ids of a torchrun's workers by rank."""
    found = {}
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        for entry in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                found[int(entry[5:])] = int(child)
    return found


def test_a_batch_that_does_not_divide_is_refused_by_every_process(tmp_path: Path) -> None:
    code, output = finish(torchrun(*ARGS, "--set", "data.batch_size=201", "--output", str(tmp_path / "run")))
    assert code != 0
    assert "data.batch_size=201 is the batch of all processes together" in output
    # torchrun's own traceback names its files; none of ours may be in one.
    assert 'recipes/train.py", line' not in output


def test_processes_meet_again_though_their_agents_count_differently() -> None:
    script = str(Path(__file__).with_name("restart_worker.py"))
    # Another process: it forks, which one that has computed with several threads cannot.
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_first_of_a_node_goes_before_the_rest() -> None:
    store, order, failures = dist.HashStore(), list[int](), list[int]()

    def process(rank: int) -> None:
        world = World(torch.device("cpu"), rank, 4, rank % 2, 2, rank // 2, store)
        try:
            with world.in_turn():
                time.sleep(0.05)
                order.append(rank)
                if rank == 2:
                    raise OSError
        except OSError:
            failures.append(rank)

    threads = [threading.Thread(target=process, args=[rank]) for rank in (3, 2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[0] == 0
    assert order.index(2) < order.index(3)
    assert sorted(order) == [0, 1, 2, 3]
    assert failures == [2]


def test_the_processes_of_a_node_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 24)
    shard = make_shard("images", World(torch.device("cpu"), rank=9, size=32, local_rank=1, local_size=8))
    assert (shard.workers, shard.rank, shard.size) == (3, 9, 32)


def test_a_compiled_network_exchanges_gradients_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="eager"))
    overrides = ["data.batch_size=12", "data.accumulation=3", "data.input_size=32", "runtime.compile=true"]
    plan = make_plan("timm:test_resnet", output=str(tmp_path / "run"), overrides=overrides)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        trainer = start(plan, World(torch.device("cpu"), rank=0, size=2))
        exchanged, backward = [], torch.Tensor.backward
        wrapped = trainer._forward
        assert isinstance(wrapped, DistributedDataParallel)
        monkeypatch.setattr(
            torch.Tensor,
            "backward",
            lambda loss: exchanged.append(wrapped.require_backward_grad_sync) or backward(loss),
        )
        batches = trainer.feed.training(0, 0)
        trainer._train_step(batches)
        trainer._train_step(batches)
    finally:
        dist.destroy_process_group()
    assert exchanged == [False, False, True] * 2
