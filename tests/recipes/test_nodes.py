"""A run on two nodes, of which one is lost: two of torchrun's agents on this machine, as on two."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from edge_sk.training.digits import digits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find torchrun's workers"),
]
ROOT = Path(__file__).parents[2]
TRAIN = ["recipes/train.py", "--arch", "timm:test_efficientnet@kernels=3+3d2", "--recipe", "digits", "--device", "cpu"]
TRAIN += ["--workers", "1", "--set", "data.batch_size=16", "data.input_size=32", "schedule.epochs=3"]
TRAIN += ["checkpoint.every_minutes=0"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split, count in (("train", 96), ("test", 32)):
        pixels, labels = digits(split)  # type: ignore[arg-type]
        for index in range(count):
            folder = root / ("train" if split == "train" else "val") / str(int(labels[index]))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index].numpy()).save(folder / f"{index}.png")
    return root


class Nodes:
    """Two agents, each in a session of its own, as on a machine of its own."""

    def __init__(self, *args: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # As in docs/training.md; the address is for this machine, whose own name may not lead to it.
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        command += ["--rdzv-backend", "c10d", "--rdzv-id", "run", "--rdzv-endpoint", f"127.0.0.1:{port}"]
        command += ["--local-addr", "127.0.0.1", "--max-restarts", "0", *TRAIN, *args]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.agents = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            for _ in range(2)
        ]

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self.agents:
            kill(agent)
            agent.communicate()

    def finish(self) -> None:
        for agent in self.agents:
            output, _ = agent.communicate(timeout=300)
            assert agent.returncode == 0, output

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not reached():
            ended = [agent.communicate()[0] for agent in self.agents if agent.poll() is not None]
            assert not ended, ended
            assert time.monotonic() < deadline
            time.sleep(0.01)


def kill(agent: subprocess.Popen[str]) -> None:
    """Kill an agent and what it started, which stands in sessions of its own."""
    for process in [agent.pid, *descendants(agent.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(process: int) -> list[int]:
    return [found for child in children(process) for found in (child, *descendants(child))]


def rank(agent: int) -> int:
    for child in children(agent):
        for entry in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return int(entry[5:])
    raise AssertionError("the agent has no worker")


def test_a_run_on_two_nodes_continues_bit_for_bit_after_one_is_lost(tmp_path: Path, images: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    with Nodes("--data", str(images), "--output", str(whole)) as nodes:
        nodes.finish()
    previous, again = run / "checkpoint.previous.pt", list[str]()
    # The node that does not write the run folder, then the one that does.
    for lost in (1, 0):
        began = time.time()
        with Nodes("--data", str(images), "--output", str(run), *again) as nodes:
            # This start has saved twice.
            nodes.wait_until(lambda began=began: previous.is_file() and previous.stat().st_mtime > began)
            by_rank = sorted(nodes.agents, key=lambda agent: rank(agent.pid))
            kill(by_rank[lost])
            survivor = by_rank[1 - lost]
            survivor.communicate(timeout=120)
            # The node that is left fails: it does not wait for ever, nor take the run for finished.
            assert survivor.returncode not in (0, None)
        assert not (run / "model.safetensors").exists()
        again = ["--resume"]
    with Nodes("--data", str(images), "--output", str(run), *again) as nodes:
        nodes.finish()
    assert (run / "manifest.json").read_text().count('"command"') == 3
    expected, found = load_file(whole / "model.safetensors"), load_file(run / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
