"""What the number of threads costs in training: README's command under several policies, on quiet and on shared cores.

    python recipes/thread_policy.py --output recipes/results/thread_policy.json

``measured`` is what train.py does (edge_sk/training/threads.py), ``one`` is OMP_NUM_THREADS=1, and ``sleeping`` is
what version 0.1 did: as many threads as cores, which sleep while they wait (OMP_WAIT_POLICY=PASSIVE). The policies
take turns over the seeds. ``shared``: another process keeps one core busy. Seconds are of the whole command, by the
clock; cores are its processor time over that. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError, script
from edge_sk.files import write_text
from edge_sk.manifest import manifest
from edge_sk.training.run import read_csv
from recipes.markdown_tables import markdown_table

TRAIN = Path(__file__).with_name("train.py")
OPENMP = ("OMP_", "GOMP_", "KMP_")


def policies() -> dict[str, dict[str, str]]:
    """Environment variables by the policy's name."""
    cores = str(len(os.sched_getaffinity(0)))
    return {
        "measured": {},
        "one": {"OMP_NUM_THREADS": "1"},
        "sleeping": {"OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "PASSIVE"},
    }


def train(policy: dict[str, str], arch: str, seed: int, settings: Sequence[str]) -> dict[str, float]:
    """Train in a process of its own; returns its seconds, the cores that it used, and its top-1.

    Raises:
        InputError: It failed; the message is its last line.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OPENMP)} | policy
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TRAIN), "--arch", arch, "--seed", str(seed), "--output", f"{folder}/run"]
        command += ["--set", *settings] if settings else []
        before, began = os.times(), time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds, after = time.perf_counter() - began, os.times()
        if done.returncode:
            raise InputError(f"{' '.join(command)} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        last = read_csv(f"{folder}/run")[-1]
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": round(seconds, 1), "cores": round(spent / seconds, 2), "top1": last["val_top1"]}


def table(record: dict[str, Any]) -> str:
    """Medians over the seeds, and the mean accuracy, as Markdown."""
    rows = [
        [
            load,
            policy,
            len(done),
            f"{(seconds := statistics.median(run['seconds'] for run in done)):.0f}",
            f"{seconds / statistics.median(run['seconds'] for run in by_policy['one']):.2f}",
            f"{statistics.median(run['cores'] for run in done):.2f}",
            f"{statistics.mean(run['top1'] for run in done):.2f}",
        ]
        for load, by_policy in record["runs"].items()
        for policy, done in by_policy.items()
    ]
    header = ["cores", "policy", "seeds", "seconds", "of one thread's", "cores used", "top-1, %"]
    return markdown_table(header, rows, "llrrrrr")


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sk_shufflenetv2_1.0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--set", metavar="K=V", nargs="+", action="extend", default=[], help="recipe fields")
    parser.add_argument("--output", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    runs: dict[str, dict[str, list[dict[str, float]]]] = {"quiet": {}, "shared": {}}
    for seed in args.seeds:
        for name, policy in policies().items():
            print(f"seed {seed}, quiet, {name}", file=sys.stderr, flush=True)
            runs["quiet"].setdefault(name, []).append(train(policy, args.arch, seed, args.set))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for name, policy in policies().items():
            print(f"seed {args.seeds[0]}, shared, {name}", file=sys.stderr, flush=True)
            runs["shared"][name] = [train(policy, args.arch, args.seeds[0], args.set)]
    finally:
        busy.kill()
        busy.wait()
    record = {
        "what": "README's training under several thread policies",
        "arch": args.arch,
        "runs": runs,
        "manifest": manifest(["recipes/thread_policy.py", *(sys.argv[1:] if argv is None else argv)]),
    }
    print(table(record))
    if args.output:
        write_text(args.output, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
