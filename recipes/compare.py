"""Compare architectures under one recipe: ``python recipes/compare.py --arch A B --seeds 0 1 2 --output runs/DIR``.

train.py trains every architecture with every seed, each in a run folder under the output folder. Finished runs are kept
and interrupted ones resumed, so the same command continues a comparison that was stopped; with --finished it compares
what there is.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from edge_sk.errors import InputError, script
from edge_sk.files import check_output, write_text

RECIPES = Path(__file__).resolve().parent
SECONDS_BETWEEN_LOOKS = 0.2
# Of the trials that choose a learning rate; no run that is compared should have it.
TRIAL_SEED = 1000
HELD_OUT = 0.2  # of the training images, where a data set has no part to validate on beside the test


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--arch",
        required=True,
        nargs="+",
        metavar="A",
        help="as for train.py, options after an @; the first is what the others are compared with",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N", help="(default: 0 to 4)")
    parser.add_argument("--recipe", help="as for train.py, the same for all (default: by data and architectures)")
    parser.add_argument("--data", default="scaled_digits", help="as for train.py (default: scaled_digits)")
    parser.add_argument("--set", metavar="K=V", nargs="+", action="extend", default=[], help="recipe fields")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        metavar="LR",
        help="learning rates to choose from for each architecture, by held-out training images (scaled_glyphs: its "
        "validation images) after one training with each",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    parser.add_argument("--device", help="as for train.py")
    parser.add_argument("--workers", type=int, metavar="N", help="as for train.py")
    parser.add_argument("--output", required=True, metavar="DIR", help="for the run folders and the comparison")
    parser.add_argument("--record", metavar="FILE", help="write the JSON here too")
    parser.add_argument("--finished", action="store_true", help="train nothing, compare the runs that are finished")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and which of them are finished")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Run:
    """One training, with fields of the recipe of its own."""

    arch: str
    seed: int
    folder: Path
    settings: tuple[str, ...] = ()


def train_command(run: Run, args: argparse.Namespace) -> list[str]:
    """Return the command that trains a run or resumes it."""
    command = [sys.executable, str(RECIPES / "train.py"), "--arch", run.arch, "--seed", str(run.seed)]
    command += ["--data", args.data, "--output", str(run.folder)]
    for flag, value in (("--recipe", args.recipe), ("--device", args.device), ("--workers", args.workers)):
        if value is not None:
            command += [flag, str(value)]
    if args.set or run.settings:
        command += ["--set", *args.set, *run.settings]
    if run.folder.is_dir():
        command.append("--resume")
    return command


def train_all(runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Train ``runs``, ``--jobs`` at once.

    Raises:
        InputError: Some failed; the message names their logs. The others are finished.
    """
    # A run that is alone chooses its threads itself.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.jobs))} if args.jobs > 1 else {}
    environment = threads | os.environ
    waiting, failed = list(runs), []
    working: dict[Run, tuple[subprocess.Popen[bytes], float]] = {}
    began, done = time.monotonic(), 0

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while waiting or working:
            while waiting and len(working) < args.jobs:
                run = waiting.pop(0)
                command = train_command(run, args)
                log_of(run).parent.mkdir(parents=True, exist_ok=True)
                with log_of(run).open("ab") as log:
                    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                working[run] = process, time.monotonic()
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for run, (process, started) in list(working.items()):
                code = process.poll()
                if code is None:
                    continue
                del working[run]
                done += 1
                if code:
                    failed.append(run)
                left = (time.monotonic() - began) / done * (len(runs) - done) / 60
                print(
                    f"{done}/{len(runs)} {run.arch} seed {run.seed}: {'failed' if code else 'done'} after "
                    f"{time.monotonic() - started:.0f} s, about {left:.0f} min left",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        # train.py saves its state at SIGTERM.
        for process, _ in working.values():
            process.terminate()
        for process, _ in working.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)
    if failed:
        logs = ", ".join(str(log_of(run)) for run in failed)
        raise InputError(f"{len(failed)} of {len(runs)} runs failed, see {logs}; the same command tries them again")


def log_of(run: Run) -> Path:
    """Return the file of a run's messages."""
    return run.folder.parent.parent / "logs" / f"{run.folder.name}.log"


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing and compare; returns the exit code."""
    args = parse(argv)
    import edge_sk
    from edge_sk.manifest import manifest
    from edge_sk.profiling import profile
    from edge_sk.training.data import MOST_WORKERS
    from edge_sk.training.distributed import pick_device
    from edge_sk.training.run import load_config
    from edge_sk.training.sources import is_drawn
    from recipes.experiments.comparison import (
        Finished,
        by_scale,
        compare,
        markdown,
        read_finished,
        run_folder,
        trained_at,
    )
    from recipes.planning import load_recipe, recipe_name

    for name, values in (("--arch", args.arch), ("--seeds", args.seeds)):
        if len(set(values)) != len(values):
            raise InputError(f"{name} {' '.join(map(str, values))} names one twice")
    for name, value, least in (("--jobs", args.jobs, 1), ("--workers", args.workers, 0)):
        if value is not None and not least <= value <= MOST_WORKERS:
            raise InputError(f"{name} {value} must be from {least} to {MOST_WORKERS}")
    if args.rates and (min(args.rates) <= 0 or len(set(args.rates)) < len(args.rates)):
        raise InputError(f"--rates {' '.join(f'{rate:g}' for rate in args.rates)}: give different rates above 0")
    pick_device(args.device)
    if args.recipe is None:
        names = sorted({recipe_name(arch, args.data) for arch in args.arch})
        if len(names) > 1:
            raise InputError(f"the architectures have different recipes ({', '.join(names)}): choose one with --recipe")
        (args.recipe,) = names
    recipe = load_recipe(args.recipe, args.set)
    differing = {key: set() for key in ("input_size", "mean", "std", "interpolation", "crop_pct")}
    for arch in args.arch:
        # A misspelled name is an error now, not after hours of training the others.
        cfg: Any = edge_sk.create_model(arch, num_classes=10).default_cfg
        for key, values in differing.items():
            values.add(getattr(recipe.data, key, None) or cfg[key])
    unpaired = {key: sorted(map(str, values)) for key, values in differing.items() if len(values) > 1}
    for key, values in unpaired.items():
        print(f"warning: the networks are given different images: {key} {' and '.join(values)}", file=sys.stderr)
    output = Path(args.output)

    def finished(run: Run) -> Finished | None:
        of_run = load_recipe(args.recipe, [*args.set, *run.settings])
        return read_finished(run.folder, of_run, arch=run.arch, data=args.data)

    def train_missing(runs: Sequence[Run], what: str) -> dict[Run, Finished]:
        """Train what is not finished, unless asked not to; the results of what is finished."""
        missing = [run for run in runs if finished(run) is None]
        counts = f"{len(runs) - len(missing)} finished, {len(missing)} to train"
        each = f"{recipe.schedule.epochs} epochs by the recipe {args.recipe}"
        print(f"{len(runs)} {what} of {each}: {counts}", file=sys.stderr)
        if args.dry_run:
            for run in runs:
                print(f"{'to train' if run in missing else 'finished'}  {run.folder}")
        elif not args.finished:
            train_all(missing, args)
        return {run: result for run in runs if (result := finished(run)) is not None}

    if not args.dry_run:
        check_output(output)
        if args.record:
            check_output(Path(args.record).parent)
    rates: dict[str, dict[str, float]] = {arch: {} for arch in args.arch}
    chosen: dict[str, tuple[str, ...]] = dict.fromkeys(args.arch, ())
    if args.rates:
        held_out = "data.val_split=validation" if args.data == "scaled_glyphs" else f"data.holdout={HELD_OUT}"
        trials = []
        for arch in args.arch:
            for rate in args.rates:
                settings = (held_out, f"optim.lr={rate:g}")
                folder = run_folder(output / f"lr{rate:g}", arch, TRIAL_SEED)
                trials.append(Run(arch, TRIAL_SEED, folder, settings))
        for trial, result in train_missing(trials, "trials of learning rates").items():
            rates[trial.arch][trial.settings[-1]] = result.top1
        complete = {arch: found for arch, found in rates.items() if len(found) == len(args.rates)}
        chosen |= {arch: (max(found, key=found.__getitem__),) for arch, found in complete.items()}
    # One seed after the other, so that an interrupted comparison has pairs.
    runs = [Run(arch, seed, run_folder(output, arch, seed), chosen[arch]) for seed in args.seeds for arch in args.arch]
    done = train_missing(runs, "runs")
    if args.dry_run:
        words = ["--arch", args.arch[0], "--recipe", args.recipe, "--data", args.data]
        words += ["--set", *args.set] if args.set else []
        print(f"the recipe and the cost of one: python recipes/train.py {shlex.join(words)} --dry-run", file=sys.stderr)
        return 0
    results: dict[str, dict[int, Finished]] = {arch: {} for arch in args.arch}
    for run, result in done.items():
        results[run.arch][run.seed] = result
    results = {arch: by_seed for arch, by_seed in results.items() if by_seed}
    if args.arch[0] not in results:
        raise InputError(f"of {args.arch[0]}, which the others are compared with, no run is finished in {output}")
    costs = {}
    for arch, by_seed in results.items():
        folders = {seed: run_folder(output, arch, seed) for seed in by_seed}
        config = load_config(folders[min(folders)])
        model = edge_sk.create_model(arch, num_classes=config.num_classes).eval()
        cost = profile(model, input_size=(1, *config.input_size))
        costs[arch] = {"input_size": list(config.input_size), "params": cost.params, "macs": cost.macs}
        if args.rates:
            costs[arch] |= {"chosen": chosen[arch], "trials": rates[arch]}
        if is_drawn(args.data):
            costs[arch]["top1_by_scale"] = {str(seed): by_scale(folder) for seed, folder in folders.items()}
    entries = compare(results, costs)
    record = {
        "recipe": args.recipe,
        "set": args.set,
        "data": args.data,
        "seeds": args.seeds,
        "epochs": recipe.schedule.epochs,
        "jobs": args.jobs,
        "input_differences": unpaired,
        "trained_at": sorted(set().union(*(trained_at(run.folder) for run in done))),
        "networks": entries,
    } | manifest(None if argv is None else ["recipes/compare.py", *argv])
    text = json.dumps(record, indent=1) + "\n"
    for path in filter(None, (output / "compare.json", args.record)):
        write_text(path, text)
    write_text(output / "compare.md", markdown(entries))
    print(markdown(entries))
    if 1 < len(args.seeds) < 5:
        print(f"Intervals over {len(args.seeds)} seeds are wide: take five or more (--seeds 0 1 2 3 4).")
    print(f"{output}: compare.json, compare.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
