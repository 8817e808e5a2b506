"""Kill, corrupt and starve a training run, hundreds of times, and count the losses: ``python recipes/fault_test.py``.

The reference is one uninterrupted run. Then, until the counts are reached: runs are killed (SIGKILL, which no
program can catch) at random moments and resumed; checkpoints are truncated or get a flipped bit between a kill and
the resume; saves meet a full disk; image files are damaged. A run is *lost* when it cannot be resumed or finished
(InputError, traceback, hang), its result is *wrong* when its weights are not bitwise the reference's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from edge_sk.errors import InputError, script

ARCH = "sk_shufflenetv2_0.5"
SETTINGS = ["data.batch_size=128", "data.input_size=32", "schedule.epochs=1", "ema.enabled=true", "ema.decay=0.9"]
# Past this, a process is counted as hanging.
PATIENCE_S = 600.0
# A traceback's exit code, 1, is also that of one clear line about the disk.
CRASH = 70


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the faults; returns 0 when nothing was lost and nothing wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="(default: 200)")
    parser.add_argument("--damages", type=int, default=60, help="damaged checkpoints (default: 60)")
    parser.add_argument("--full-disks", type=int, default=20, help="saves that fail (default: 20)")
    parser.add_argument("--bad-images", type=int, default=20, help="runs over damaged images (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", metavar="FILE.json", help="where the record goes")
    args = parser.parse_args(argv)
    for name in ("kills", "damages", "full_disks", "bad_images"):
        if getattr(args, name) < 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)} is negative; give 0 or more")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fault_test_") as folder:
        faults = FaultTest(Path(folder), random.Random(args.seed))
        _show(
            ("killed", args.kills, faults.kill_until(args.kills)),
            ("damaged checkpoints", args.damages, faults.damage_until(args.damages)),
            ("full disks", args.full_disks, faults.fill_disk_until(args.full_disks)),
            ("damaged images", args.bad_images, faults.damage_images_until(args.bad_images)),
        )
    record = faults.counts | {"seconds": round(time.monotonic() - began)}
    print(json.dumps(record, indent=2))
    if args.output is not None:
        _write_record(Path(args.output), record, args.seed, argv)
    return 0 if faults.counts["lost_runs"] == faults.counts["wrong_results"] == 0 else 1


def _show(*phases: tuple[str, int, Iterator[int]]) -> None:
    """Go through the phases, which say after each run how many faults there were, with a bar for each on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    # Without the thread that redraws: processes are forked meanwhile.
    with Progress(console=Console(stderr=True), auto_refresh=False) as bars:
        tasks = [bars.add_task(name, total=total) for name, total, _ in phases]
        for task, (_, _, phase) in zip(tasks, phases, strict=True):
            for count in phase:
                bars.update(task, completed=count, refresh=True)


class FaultTest:
    """Runs under faults, against one uninterrupted reference.

    Each kind of fault is a generator that yields, after every run, how many there have been.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.counts: dict[str, Any] = {
            "kills": 0,
            "kills_before_the_first_checkpoint": 0,
            "kills_while_a_file_was_being_written": 0,
            "truncated_checkpoints": 0,
            "bit_flipped_checkpoints": 0,
            "full_disks": 0,
            "runs_over_damaged_images": 0,
            "damaged_images": 0,
            "finished_runs": 0,
            "lost_runs": 0,
            "wrong_results": 0,
            "what_went_wrong": [],
        }
        # Loaded once: the processes to be killed are forked and start in milliseconds.
        import torch

        import edge_sk.training.plan  # noqa: F401

        torch.set_num_threads(1)
        self.reference = folder / "reference"
        began = time.monotonic()
        if self._wait(self._start(self.reference)) != 0:
            raise InputError("the uninterrupted run fails already")
        self.duration = time.monotonic() - began

    def kill_until(self, kills: int) -> Iterator[int]:
        """Kill runs at random moments, start to end, and resume them."""
        while self.counts["kills"] < kills:
            run = self._new_run()
            while self.counts["kills"] < kills and not self._killed_attempt(run):
                pass
            self._finish(run)
            yield self.counts["kills"]

    def damage_until(self, damages: int) -> Iterator[int]:
        """Truncate a checkpoint, or flip one of its bits, between a kill and the resume."""
        while self._damages() < damages:
            run = self._new_run()
            # Two checkpoints at least: the damaged one and the one to fall back to.
            self._kill_once(run, when=lambda run=run: (run / "checkpoint.previous.pt").exists(), within=0.4)
            self._damage(run / "checkpoint.pt")
            self._finish(run)
            yield self._damages()

    def fill_disk_until(self, full_disks: int) -> Iterator[int]:
        """Let a save run out of space (the process's limit on the size of files), then resume with space."""
        for _ in range(full_disks):
            run = self._new_run()
            # At once, so that there is still something to save.
            self._kill_once(run, when=lambda run=run: (run / "checkpoint.pt").exists(), within=0.0)
            size = (run / "checkpoint.pt").stat().st_size
            process = self._start(run, resume=True, file_limit=self.rng.randrange(size // 4, size - 1))
            code = self._wait(process)
            self.counts["full_disks"] += 1
            # 1: one clear line about the disk; anything else is a crash.
            if code != 1:
                self._lost(f"full disk: exit code {code}, not 1")
            elif left := [path.name for path in run.glob(".checkpoint*")]:
                self._lost(f"full disk: left {', '.join(left)}")
            else:
                self._finish(run)
            yield self.counts["full_disks"]

    def damage_images_until(self, runs: int) -> Iterator[int]:
        """Train on folders in which some files are truncated or not images: they are skipped, the run ends."""
        from edge_sk.training.run import CSV

        for number in range(runs):
            data, run = self.folder / f"images{number}", self.folder / f"on_images{number}"
            damaged = self._make_images(data)
            code = self._wait(self._start(run, data=data))
            self.counts["runs_over_damaged_images"] += 1
            self.counts["damaged_images"] += damaged
            if code != 0 or not (run / CSV).exists():
                self._lost(f"damaged images: exit code {code}")
            else:
                self.counts["finished_runs"] += 1
            shutil.rmtree(data)
            shutil.rmtree(run, ignore_errors=True)
            yield self.counts["runs_over_damaged_images"]

    def _new_run(self) -> Path:
        return self.folder / f"run{self.rng.getrandbits(64):016x}"

    def _damages(self) -> int:
        return self.counts["truncated_checkpoints"] + self.counts["bit_flipped_checkpoints"]

    def _start(
        self, run: Path, *, resume: bool = False, data: Path | None = None, file_limit: int | None = None
    ) -> BaseProcess:
        process = multiprocessing.get_context("fork").Process(target=_train, args=(run, resume, data, file_limit))
        process.start()
        return process

    def _wait(self, process: BaseProcess) -> int | None:
        """Exit code; ``None`` for a process that hangs."""
        process.join(PATIENCE_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            return None
        return process.exitcode

    def _killed_attempt(self, run: Path) -> bool:
        """Start or resume, and kill after a random time; returns whether the run ended before."""
        process = self._start(run, resume=run.exists())
        process.join(self.rng.uniform(0.0, self.duration * 0.6))
        return not self._kill(process, run)

    def _kill_once(self, run: Path, *, when: Callable[[], bool], within: float) -> None:
        """Start a run and kill it after ``when``, at a random moment ``within`` that share of a run's duration."""
        process = self._start(run)
        deadline = time.monotonic() + PATIENCE_S
        while not when() and process.exitcode is None and time.monotonic() < deadline:
            process.join(0.005)
        process.join(self.rng.uniform(0.0, self.duration * within))
        self._kill(process, run)

    def _kill(self, process: BaseProcess, run: Path) -> bool:
        """Kill; ``False`` when the process had ended by itself, which is a loss unless it had finished."""
        if process.exitcode is not None:
            if process.exitcode != 0:
                self._lost(f"ended by itself with exit code {process.exitcode}")
            return False
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        self.counts["kills"] += 1
        if run.exists():
            self.counts["kills_while_a_file_was_being_written"] += bool(list(run.glob(".*")))
            has_checkpoint = (run / "checkpoint.pt").exists() or (run / "checkpoint.previous.pt").exists()
            self.counts["kills_before_the_first_checkpoint"] += not has_checkpoint
        return True

    def _lost(self, why: str) -> None:
        self.counts["lost_runs"] += 1
        self.counts["what_went_wrong"].append(why)

    def _damage(self, file: Path) -> None:
        if not file.exists():
            # Killed between the two renames of a save: the previous one is all there is, and whole.
            return
        content = bytearray(file.read_bytes())
        if self.rng.random() < 0.5:
            content = content[: self.rng.randrange(len(content))]
            self.counts["truncated_checkpoints"] += 1
        else:
            bit = self.rng.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            self.counts["bit_flipped_checkpoints"] += 1
        file.write_bytes(content)

    def _finish(self, run: Path) -> None:
        """Resume until the end and compare with the reference."""
        from safetensors.torch import load_file

        code = self._wait(self._start(run, resume=run.exists()))
        if code != 0:
            self._lost(f"resume: exit code {code}")
            return
        self.counts["finished_runs"] += 1
        expected, found = load_file(self.reference / "model.safetensors"), load_file(run / "model.safetensors")
        same = expected.keys() == found.keys() and all(bool((found[k] == expected[k]).all()) for k in expected)
        if not same:
            self.counts["wrong_results"] += 1
            self.counts["what_went_wrong"].append("weights differ from the uninterrupted run's")
        shutil.rmtree(run)

    def _make_images(self, root: Path) -> int:
        """A folder of digits with some damaged files; returns how many."""
        from PIL import Image

        from edge_sk.training.digits import digits

        damaged = 0
        for split, count in (("train", 96), ("test", 32)):
            images, labels = digits(split)  # type: ignore[arg-type]
            for index in range(count):
                folder = root / ("train" if split == "train" else "val") / str(int(labels[index]))
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{index}.png"
                Image.fromarray(images[index].numpy()).save(path)
                if self.rng.random() < 0.05:
                    content = path.read_bytes()
                    junk = self.rng.choice(
                        [b"", content[: self.rng.randrange(len(content))], b"GIF89a", os.urandom(64)]
                    )
                    path.write_bytes(junk)
                    damaged += 1
        return damaged


def _train(run: Path, resume: bool, data: Path | None, file_limit: int | None) -> None:
    """Body of a forked process: what ``recipes/train.py`` does, with a checkpoint after every step."""
    from edge_sk.training.distributed import join_world
    from edge_sk.training.plan import start
    from recipes.planning import make_plan

    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    @script
    def train(_: Sequence[str] | None = None) -> int:
        settings = [*SETTINGS, "checkpoint.every_minutes=0"]
        if data is not None:
            settings += ["data.batch_size=32", "data.max_unreadable=100"]
        plan = make_plan(
            ARCH,
            recipe="digits",
            data=None if data is None else str(data),
            output=str(run),
            overrides=settings,
            resume=resume,
        )
        with join_world("cpu") as world:
            return 0 if start(plan, world, workers=0).run() is None else 1

    with _silence():
        try:
            code = train([])
        except BaseException:
            code = CRASH
        os._exit(code)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _write_record(path: Path, record: dict[str, Any], seed: int, argv: Sequence[str] | None) -> None:
    from edge_sk.files import write_text
    from edge_sk.manifest import manifest

    record = {
        "what": "faults that a training run was put through; lost: cannot be resumed or finished; wrong: not bitwise "
        "the uninterrupted run",
        "run": {"arch": ARCH, "recipe": "digits", "settings": SETTINGS},
        "full_disk_by": "RLIMIT_FSIZE: the write that passes the limit fails",
        **record,
        "manifest": manifest(argv if argv is None else ["recipes/fault_test.py", *argv], seed=seed),
    }
    write_text(path, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
