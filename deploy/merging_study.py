"""Merge trained networks for several budgets; write the record behind docs/merging.md: one command, a quiet machine.

python deploy/merging_study.py --runs runs/merging

The run folders are those of ``python recipes/train.py --arch ARCH --recipe digits --seed N --output RUNS/ARCH-N``; runs
that are missing are left out, and the page says how many seeds there are. Units are merged in the order that the costs
of fp32 on one thread give; budgets are judged by the costs of each precision and number of threads. Files take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError, script  # isort: skip (before torch: Ctrl-C)
from torch import nn

from deploy import merging
from edge_sk.export import network as networks
from edge_sk.export import to_pte
from edge_sk.export.network import Network
from edge_sk.export.record import Precision
from edge_sk.files import check_output, write_text
from edge_sk.manifest import manifest
from edge_sk.merging import Costs, Goal
from edge_sk.reading import read_json, validated
from recipes.experiments.confidence import mean_interval
from recipes.markdown_tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULT, PAGE = ROOT / "deploy" / "results" / "merging.json", ROOT / "docs" / "merging.md"
ARCHS = ("shufflenetv2_1.0", "mobilenetv2_1.0")
BUDGETS = (1.05, 1.10)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or write the page of a record."""
    p = argparse.ArgumentParser(
        prog="deploy/merging_study.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--runs", type=Path, metavar="DIR", help="trained runs; without it, the page of --output's record")
    p.add_argument("--archs", nargs="+", default=list(ARCHS), help="plain networks (default: the two of the page)")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--precisions", nargs="+", choices=("fp32", "int8"), default=["fp32", "int8"])
    p.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    p.add_argument("--reuse", action="store_true", help="take the units' costs of --output's record")
    p.add_argument("--output", type=Path, default=RESULT, help="default: deploy/results/merging.json")
    args = p.parse_args(argv)
    if args.runs is not None:
        check_output(args.output.parent)
        command = ["deploy/merging_study.py", *(sys.argv[1:] if argv is None else argv)]
        # One architecture after another: what an earlier call measured of others stays.
        record: dict[str, Any] = {"budgets": BUDGETS, "studies": {}}
        if args.output.exists():
            record = read_json(args.output)
        for arch in args.archs:
            seeds = [seed for seed in args.seeds if all(folder.is_dir() for folder in _runs(args.runs, arch, seed))]
            if not seeds:
                raise InputError(f"--runs {args.runs} has no pair of runs such as {_runs(args.runs, arch, 0)[1]}")
            known = record["studies"].get(arch, {}).get("costs", {}) if args.reuse else {}
            found = study(args.runs, arch, seeds, args.precisions, args.threads, known)
            record["studies"][arch] = found | {"manifest": manifest(command)}
            write_text(args.output, json.dumps(record, indent=1) + "\n")
    record = read_json(args.output, missing=f"no record at {args.output}; --runs makes one")
    if args.output.resolve() == RESULT:
        write_text(PAGE, page(record))
        draw(record)
    print(tables(record))
    return 0


def _runs(folder: Path, arch: str, seed: int) -> tuple[Path, Path]:
    return folder / f"{arch}-{seed}", folder / f"sk_{arch}-{seed}"


def study(
    folder: Path,
    arch: str,
    seeds: Sequence[int],
    precisions: Sequence[Precision],
    threads: Sequence[int],
    known: dict[str, Any],
) -> dict[str, Any]:
    """One architecture: costs, the path of every seed, and latency and accuracy at every budget."""
    trained = {seed: [networks.from_run(run) for run in _runs(folder, arch, seed)] for seed in seeds}
    first = trained[seeds[0]][1]
    found: dict[str, Any] = {"input_size": first.input_size, "seeds": {}, "latency": {}, "costs": {}}
    with tempfile.TemporaryDirectory(prefix="edge_sk_study_") as name:
        work = Path(name)
        tables: dict[str, Costs] = {}
        for precision in precisions:
            for count in threads:
                _say(f"{arch}: costs, {precision}, threads={count}")
                key = f"{precision} {count}"
                if key in known:
                    table = validated(merging.CostTable, known[key], f"costs of {arch} {key}")
                else:
                    table = merging.measure_costs(first, precision=precision, threads=count, work=work)
                found["costs"][key] = table.model_dump()
                tables[key] = Costs(plain=table.plain, units=table.units)
        order = next(iter(tables.values()))
        merged: dict[str, dict[str, nn.Module]] = {key: {} for key in tables}  # of the first seed
        for seed, (plain, selective) in trained.items():
            _say(f"{arch}: seed {seed}")
            points, report = merging.walk(selective, costs=order)
            row = found["seeds"][str(seed)] = {
                "plain": merging.test_top1(plain, plain.model),
                "sk": points[0].test_top1,
                "path": [merging.described(point) for point in points],
                "units": [dataclasses.asdict(unit) for unit in report.units],
                "int8": {},
                "budgets": {},
            }
            for key, costs in tables.items():
                judged = [
                    point._replace(step=dataclasses.replace(point.step, ratio=costs.ratio(point.step.outcomes)))
                    for point in points
                ]
                for budget in BUDGETS:
                    index = merging.choose(judged, Goal(budget=budget))
                    step = judged[index].step
                    row["budgets"][f"{key} {budget}"] = {
                        "index": index,
                        "met": Goal(budget=budget).reached(step),
                        "ratio_by_costs": step.ratio,
                        "top1": points[index].test_top1,
                    }
                    if seed == seeds[0]:
                        merged[key][f"step {index}"] = points[index].model
            if "int8" in precisions:
                used = {choice["index"] for key, choice in row["budgets"].items() if key.startswith("int8")}
                for label, network in {"plain": plain, "sk": selective}.items():
                    row["int8"][label] = int8_top1(network, work)
                for index in sorted(used):
                    row["int8"][str(index)] = int8_top1(_with(selective, points[index].model), work)
        twin = merging.plain_twin(first.model)
        for precision in precisions:
            for count in threads:
                key = f"{precision} {count}"
                _say(f"{arch}: latency, {precision}, threads={count}")
                measured = merging.measure_together(
                    first,
                    {"plain": twin, "sk": first.model, **merged[key]},
                    precision=precision,
                    threads=count,
                    work=work,
                )
                found["latency"][key] = {
                    "seed": seeds[0],
                    "ratios": merging.ratios(measured),
                    "p50_ms": {label: one.p50_ms for label, one in measured.items()},
                    "where": measured["plain"].where,
                }
    return found


def _with(network: Network, model: nn.Module) -> Network:
    return dataclasses.replace(network, model=model)


def int8_top1(network: Network, work: Path) -> float | None:
    """Accuracy in per cent of the int8 file on the test images; ``None`` if the file cannot be proven."""
    try:
        record = to_pte(network, work / "int8", precision="int8")
    except InputError as error:
        _say(f"{network.arch} int8: {error}")
        return None
    return None if record.accuracy is None else 100 * record.accuracy.top1


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def tables(record: dict[str, Any]) -> str:
    """A table per architecture: latency and accuracy of plain, SK and merged, means over seeds."""
    parts = []
    for arch, found in record["studies"].items():
        rows = []
        for key in found["latency"]:
            precision, threads = key.split()
            for label, budget in [("plain", None), ("SK", None), *((f"merged, {b:.2f}", b) for b in record["budgets"])]:
                rows.append([precision, threads, label, *_cells(found, key, label, budget)])
        header = [
            "precision",
            "threads",
            "network",
            "latency, of plain",
            "units that select",
            "test top-1",
            "against SK",
        ]
        seeds = len(found["seeds"])
        title = f"`sk_{arch}` on the digits, {seeds} seed{'s' * (seeds > 1)}:"
        parts.append(f"{title}\n\n{markdown_table(header, rows, 'lrlrrrr')}")
    return "\n\n".join(parts)


def _cells(found: dict[str, Any], key: str, label: str, budget: float | None) -> list[str]:
    """Latency of the first seed's file, units that select, accuracy, and its difference from SK."""
    measured = found["latency"][key]
    top1, against, selecting, latency = list[float](), list[float](), list[int](), ""
    for seed, row in found["seeds"].items():
        name = label.lower()
        selecting.append(0 if label == "plain" else len(row["units"]))
        if budget is not None:
            choice = row["budgets"][f"{key} {budget}"]
            name, selecting[-1] = str(choice["index"]), row["path"][choice["index"]]["select"]
        file = name if budget is None else f"step {name}"
        if int(seed) == measured["seed"]:
            latency = f"{measured['ratios'][file]:.2f}"
        if key.startswith("int8"):
            value, reference = row["int8"].get(name), row["int8"].get("sk")
        else:
            value, reference = row[name] if budget is None else row["path"][int(name)]["test_top1"], row["sk"]
        if value is not None and reference is not None:
            top1.append(value)
            against.append(value - reference)
    low, high = mean_interval(against)
    interval = f" ({low:+.2f} to {high:+.2f})" if len(against) > 1 else ""
    return [
        latency,
        ", ".join(map(str, selecting)),
        f"{statistics.fmean(top1):.2f} %" if top1 else "not proven",
        "" if label == "SK" or not against else f"{statistics.fmean(against):+.2f}{interval}",
    ]


PAGE_TEXT = """\
# Merging: selection only where it pays

A unit whose attention hardly moves is nearly a fixed sum of its branches, and a fixed sum of linear branches is one
convolution. `edge_sk.merge` and `deploy/export.py --merge` keep the units that select, and merge the others.

```console
python deploy/export.py --checkpoint runs/sk_shufflenetv2_1.0 --merge budget=1.10 --output exports
python deploy/export.py --checkpoint runs/sk_shufflenetv2_1.0 --merge tolerance=0.3 finetune=3 --output exports
python deploy/export.py --checkpoint runs/sk_shufflenetv2_1.0 --merge keep=3 threads=2 --output exports
```

- `budget` is of the latency of the plain network, exported the same way, on this host; `costs=FILE` gives what units
  cost elsewhere, in the form of the `.costs.json` that every call writes.
- `tolerance` is in points of accuracy on at most 512 training images, 167 of 224 pixels. The network has learned them,
  so what it loses on new images can be more: look at the test accuracy in the record.
- A unit is kept, merged exactly (3x3 and 3x3 dilated: one 5x5), or cut to the host's own kernel by a least-squares fit.
- What is merged can be undone only from the checkpoint.

From Python, with `costs` as `edge_sk.merging.Costs`:

```python
merged, report = edge_sk.merge(model, images, keep=3)
```

## Measured

{tables}

Host latency at the runs' own image size ({size}), of the first seed's files. "Against SK": points of test accuracy,
mean over seeds, with Student's 95 % interval; one test digit is 0.28 points. int8 is compared with int8. Units are
taken in the order that fp32 on one thread gives. Accuracy is before any training after merging.

The selecting network was measured twice, for the costs and beside the merged files ({noise}): that is how far a ratio
can be trusted. Targets were a loss of at most 0.3 points at 1.10 and 0.5 at 1.05.
{missing}
{curves}

The record is [deploy/results/merging.json](../deploy/results/merging.json), made by

```console
{commands}
```
"""


def page(record: dict[str, Any]) -> str:
    """docs/merging.md."""
    pictures = [f"![test accuracy of sk_{arch} against latency](merging/{arch}.png)" for arch in record["studies"]]
    sizes = sorted({found["input_size"][-1] for found in record["studies"].values()})
    return PAGE_TEXT.format(
        tables=tables(record),
        curves="\n\n".join(pictures),
        commands="\n".join(dict.fromkeys(found["manifest"]["command"] for found in record["studies"].values())),
        missing=missing(record),
        noise=noise(record),
        size=" and ".join(f"{size} pixels" for size in sizes),
    )


def missing(record: dict[str, Any]) -> str:
    """What the record lacks of three seeds, both networks, both precisions, and one and two threads."""
    lacks = [f"sk_{arch}" for arch in ARCHS if arch not in record["studies"]]
    for arch, found in record["studies"].items():
        measured = {tuple(key.split()) for key in found["latency"]}
        lacks += [
            f"sk_{arch} in {precision} on {threads} thread{'s' * (threads != '1')}"
            for precision in ("fp32", "int8")
            for threads in ("1", "2")
            if (precision, threads) not in measured
        ]
        if len(found["seeds"]) < 3:
            lacks.append(f"a third seed of sk_{arch}")
    return f"\nNot measured yet: {'; '.join(lacks)}.\n" if lacks else ""


def noise(record: dict[str, Any]) -> str:
    """The selecting networks' latency when the costs were measured, and when the files were."""
    pairs = [
        (
            f"sk_{arch} {key.replace(' ', ', threads=')}",
            Costs(plain=costs["plain"], units=costs["units"]),
            found["latency"][key]["ratios"]["sk"],
        )
        for arch, found in record["studies"].items()
        for key, costs in found["costs"].items()
    ]
    return "; ".join(
        f"{name}: {costs.ratio(dict.fromkeys(costs.units, 'select')):.2f} and {sk:.2f}" for name, costs, sk in pairs
    )


def draw(record: dict[str, Any]) -> None:
    """The pictures of docs/merging.md."""
    for arch, found in record["studies"].items():
        curves = {f"seed {seed}": row["path"] for seed, row in found["seeds"].items()}
        merging.plot(curves, PAGE.parent / "merging" / f"{arch}.png")


if __name__ == "__main__":
    sys.exit(main())
