"""How long training takes to start on a large folder: from the command to the end of the first step.

    python recipes/start_up.py --trees before=../edge_sk_0.2 after=. --output recipes/results/start_up.json

Makes a folder of small images once, then starts `recipes/train.py` in every source tree under torchrun, the trees in
turn, and stops it after its first step. `first` is a new run, which has to go through the folder; `again` is the same
run continued; `few_files` is a new run on a folder of 300 files: what is left without the folder's size, most of
it the imports of every process.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError, script

ARCH = "sk_shufflenetv2_0.5"
SETTINGS = ["data.batch_size=32", "data.input_size=32", "schedule.warmup_epochs=0", "checkpoint.every_minutes=0"]
KINDS = ("first", "again", "few_files")
VAL = 10  # images of each class that are tested on
PATIENCE_S = 900.0


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", metavar="NAME=FOLDER", nargs="+", default=["after=."], help="source trees")
    parser.add_argument("--images", type=int, default=300_000, help="files in the made folder")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the images are made and kept (default: made and removed)")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    trees = {name: Path(folder).resolve() for name, _, folder in (tree.partition("=") for tree in args.trees)}
    for name, tree in trees.items():
        if not (tree / "recipes" / "train.py").is_file():
            raise InputError(f"--trees {name}={tree}: there is no recipes/train.py; give NAME=FOLDER")
    if args.images // args.classes <= VAL:
        raise InputError(f"--images {args.images} are fewer than {VAL + 1} for each of {args.classes} classes")
    with tempfile.TemporaryDirectory(prefix="start_up_") as scratch:
        data = args.folder or Path(scratch) / "images"
        if not data.exists():
            make_images(data, args.images, args.classes)
        make_images(Path(scratch) / "few", 300, 10)
        seconds: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in KINDS} for name in trees}
        for number in range(args.rounds):
            for name, tree in trees.items():
                for kind in KINDS:
                    run = Path(scratch) / f"{name}{number}{kind if kind == 'few_files' else ''}"
                    images = Path(scratch) / "few" if kind == "few_files" else data
                    seconds[name][kind].append(round(start(tree, run, images, args.processes), 2))
                    print(f"{name}, {kind}: {seconds[name][kind][-1]:.1f} s", file=sys.stderr)
                    if kind != "first":
                        shutil.rmtree(run)
    medians = {
        name: {kind: statistics.median(values) for kind, values in kinds.items()} for name, kinds in seconds.items()
    }
    for kinds in medians.values():
        kinds |= {f"{kind} - few_files": round(kinds[kind] - kinds["few_files"], 2) for kind in ("first", "again")}
    baseline = medians[next(iter(trees))]
    record: dict[str, Any] = {
        "what": "seconds from the command to the end of the first step",
        "images": args.images,
        "classes": args.classes,
        "processes": args.processes,
        "run": {"arch": ARCH, "recipe": "light", "settings": SETTINGS},
        "trees": {name: commit(tree) for name, tree in trees.items()},
        "seconds": seconds,
        "median": medians,
        "ratio": {
            name: {
                kind: round(median / baseline[kind], 3) if baseline[kind] > 0 else None
                for kind, median in kinds.items()
            }
            for name, kinds in medians.items()
        },
    }
    print(json.dumps(record, indent=2))
    if args.output is not None:
        from edge_sk.files import write_text
        from edge_sk.manifest import manifest

        record["manifest"] = manifest(argv if argv is None else ["recipes/start_up.py", *argv])
        write_text(args.output, json.dumps(record, indent=2) + "\n")
    return 0


def make_images(root: Path, images: int, classes: int) -> None:
    """Make ``images`` small PNG files, equally many of every class."""
    from PIL import Image

    print(f"making {images:,} files in {root}", file=sys.stderr)
    for number in range(classes):
        content = io.BytesIO()
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(content, "png")
        for split, indices in (("val", range(VAL)), ("train", range(VAL, images // classes))):
            folder = root / split / f"n{number:08}"
            folder.mkdir(parents=True)
            for index in indices:
                (folder / f"n{number:08}_{index}.png").write_bytes(content.getvalue())


def start(tree: Path, run: Path, data: Path, processes: int) -> float:
    """Seconds until the run has written its first checkpoint, after which it is stopped; the run goes on if there."""
    again = ["--resume"] if run.exists() else []
    before = saved(run)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["recipes/train.py", "--arch", ARCH, "--recipe", "light", "--data", str(data), "--output", str(run)]
    command += ["--device", "cpu", *again, "--set", *SETTINGS]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while saved(run) in (0, before):
                if process.poll() is not None or time.perf_counter() - began > PATIENCE_S:
                    output.seek(0)
                    raise InputError(f"{tree}: no first step: {output.read()[-400:]}")
                time.sleep(0.05)
            seconds = time.perf_counter() - began
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return seconds


def saved(run: Path) -> int:
    """When the run's checkpoint was written, in ns; 0 while there is none."""
    try:
        return (run / "checkpoint.pt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def commit(tree: Path) -> str:
    """The commit of a source tree."""
    describe = ["git", "-C", str(tree), "describe", "--always", "--dirty=+dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
