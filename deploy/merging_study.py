"""Merge trained networks for several budgets, and write the record behind docs/merging.md.

python deploy/merging_study.py --runs runs/merging               # merge, test and export; any machine, hours
python deploy/merging_study.py --runs runs/merging --latency     # measure the files; a quiet machine, minutes
python deploy/merging_study.py --runs runs/merging               # what the measured costs have changed
python deploy/merging_study.py                                   # the page

The run folders are those of ``python recipes/train.py --arch ARCH --recipe digits --seed N --output RUNS/ARCH-N``, for
the selecting network and the plain one; seeds that are missing are left out. What the record has is not done again.
Units are merged in the order that their costs in fp32 on one thread give, from the first call; budgets are judged by
the whole files of each precision and number of threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError, script  # isort: skip (before torch: Ctrl-C)
from deploy import costs as measuring
from deploy import merging
from edge_sk.costs import Costs
from edge_sk.export import network as networks
from edge_sk.export import to_pte
from edge_sk.export.network import Network
from edge_sk.export.record import Precision
from edge_sk.files import check_output, write_text
from edge_sk.manifest import manifest
from edge_sk.reading import read_json
from recipes.experiments.confidence import mean_interval
from recipes.markdown_tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULT, PAGE = ROOT / "deploy" / "results" / "merging.json", ROOT / "docs" / "merging.md"
ARCHS = ("sk_shufflenetv2_1.0", "sk_mobilenetv2_1.0")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
KEYS = tuple(f"{precision} {threads}" for precision in PRECISIONS for threads in (1, 2))
BUDGETS = (1.05, 1.10)
# Of the first seed's path: these are exported, to be measured whichever of them the costs choose.
MEASURED = (1.02, 1.12)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Merge, measure, or write the page of a record."""
    p = argparse.ArgumentParser(
        prog="deploy/merging_study.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--runs", type=Path, metavar="DIR", help="trained runs; without it, the page of --output's record")
    p.add_argument("--archs", nargs="+", default=list(ARCHS), help="selecting networks (default: the two of the page)")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--finetune", type=int, default=3, metavar="EPOCHS", help="after merging (default: 3)")
    p.add_argument("--latency", action="store_true", help="measure the files that a call without it has exported")
    p.add_argument("--output", type=Path, default=RESULT, help="default: deploy/results/merging.json")
    args = p.parse_args(argv)
    record: dict[str, Any] = {"budgets": BUDGETS, "finetune": args.finetune, "studies": {}}
    if args.output.exists() or args.runs is None:
        record = read_json(args.output, missing=f"no record at {args.output}; --runs makes one")
    if args.runs is not None:
        check_output(args.output.parent)
        command = ["deploy/merging_study.py", *(sys.argv[1:] if argv is None else argv)]
        for arch in args.archs:
            folder = args.runs / "files" / arch
            if args.latency:
                found = record["studies"].get(arch)
                if found is None or "files" not in found or not folder.is_dir():
                    raise InputError(f"--latency measures what a call without it has exported: {folder} is not there")
                measure(found, folder)
                found["latency_manifest"] = manifest(command)
            else:
                found = record["studies"].setdefault(arch, {"seeds": {}})
                found["manifest"] = manifest(command)
                for seed in args.seeds:
                    runs = args.runs / f"{arch}-{seed}", args.runs / f"{plain(arch)}-{seed}"
                    if all(run.is_dir() for run in runs):
                        for _ in one_seed(found, str(seed), *runs, folder, epochs=record["finetune"]):
                            write_text(args.output, json.dumps(record, indent=1) + "\n")
                if not found["seeds"]:
                    raise InputError(f"--runs {args.runs} has no pair of runs such as {arch}-0 and {plain(arch)}-0")
            write_text(args.output, json.dumps(record, indent=1) + "\n")
    if args.output.resolve() == RESULT:
        write_text(PAGE, page(record))
        for arch, found in record["studies"].items():
            curves = {f"seed {seed}": curve(found, row) for seed, row in found["seeds"].items()}
            merging.plot(curves, picture(arch))
    print(tables(record))
    return 0


def plain(arch: str) -> str:
    """The plain network of a selecting one."""
    return arch.removeprefix("sk_").partition("@")[0]


def one_seed(
    found: dict[str, Any], seed: str, selective: Path, control: Path, work: Path, *, epochs: int
) -> Iterator[None]:
    """A seed's path, the accuracy of what is chosen from it, and files of the first seed's; yields after each part."""
    row = found["seeds"].get(seed)
    if row is not None and not any(lacking(found, row)):
        return
    network, plain_network = networks.from_run(selective), networks.from_run(control)
    if "order" not in found:
        _say(f"{network.arch}: costs")
        found["order"] = measuring.measure_costs(network, precision="fp32", threads=1, work=work).model_dump()
    _say(f"{network.arch}: the path of seed {seed}")
    points, report = merging.walk(network, costs=Costs(**found["order"]))
    if row is None:
        row = found["seeds"][seed] = {
            "plain": merging.test_top1(plain_network, plain_network.model),
            "sk": points[0].test_top1,
            "path": [point.described() for point in points],
            "units": [dataclasses.asdict(unit) for unit in report.units],
            "int8": {},
            "finetuned": {},
        }
    found["input_size"] = network.input_size
    yield
    for_int8, for_finetuning, for_files = lacking(found, row)
    chosen = {str(index): dataclasses.replace(network, model=point.model) for index, point in enumerate(points)}
    chosen |= {"plain": plain_network, "sk": network}
    for name in sorted(for_int8):
        row["int8"][name] = int8_top1(chosen[name], work)
        yield
    for name in sorted(for_finetuning):
        _say(f"{network.arch}: seed {seed}, step {name}, {epochs} epochs more")
        trained = merging.finetune(chosen[name], selective, epochs)
        row["finetuned"][name] = merging.test_top1(trained, trained.model)
        yield
    if for_files:
        models = {f"step{index}": points[int(index)].model for index in sorted(for_files, key=int)}
        if "files" not in found:
            near = [i for i, point in enumerate(points) if MEASURED[0] <= (point.step.ratio or 0) <= MEASURED[1]]
            models |= {f"step{index}": points[index].model for index in near}
            models |= {form: measuring.replaced(network.model, make) for form, make in measuring.FORMS.items()}
        for precision in PRECISIONS:
            _say(f"{network.arch}: {len(models)} files, {precision}")
            measuring.write_files(network, models, precision=precision, work=work)
        found["files"] = [*found.get("files", ()), *models]
        yield


def lacking(found: dict[str, Any], row: dict[str, Any]) -> tuple[set[str], set[str], set[str]]:
    """What a seed lacks, as steps of its path: tests in int8, trainings on (the choices of fp32 on one thread), files.

    Files are those of the first seed.
    """
    chosen = {key: {str(choice(found, row, key, budget)) for budget in BUDGETS} for key in KEYS}
    int8 = {name for key in KEYS if key.startswith("int8") for name in {*chosen[key], "plain", "sk"}}
    first = row is next(iter(found["seeds"].values()))
    files = {name for name in set().union(*chosen.values()) if first and f"step{name}" not in found.get("files", ())}
    return int8 - row["int8"].keys(), chosen[KEYS[0]] - row["finetuned"].keys(), files


def costs(found: dict[str, Any], key: str) -> Costs:
    """The units' costs: how they are shared says the trace of fp32 on one thread, how much it is the whole files."""
    order, ratios = found["order"], found.get("latency", {}).get(key, {}).get("ratios")
    if ratios is None:
        return Costs(**order)
    units = {name: dict(unit) for name, unit in order["units"].items()}
    for outcome in ("select", "merge"):
        together = sum(unit[outcome] for unit in units.values()) or 1
        for unit in units.values():
            unit[outcome] *= max(ratios[outcome] - 1, 0) / together
    return Costs(plain=1, units=units)


def choice(found: dict[str, Any], row: dict[str, Any], key: str, budget: float) -> int:
    """The first network of a seed's path that keeps a budget by the costs of a precision and number of threads."""
    within = [index for index, ratio in enumerate(ratios_by_costs(found, row, key)) if ratio <= budget]
    return within[0] if within else len(row["path"]) - 1


def ratios_by_costs(found: dict[str, Any], row: dict[str, Any], key: str) -> list[float]:
    """Latency along a seed's path, as a share of the plain network's."""
    table, units = costs(found, key), {unit["name"]: "select" for unit in row["units"]}
    ratios = []
    for point in row["path"]:
        if point["moved"]:
            name, units[name] = point["moved"].split()
        ratios.append(table.ratio(units))  # type: ignore[arg-type]
    return ratios


def measure(found: dict[str, Any], work: Path) -> None:
    """Measure the files that were not, for every precision and number of threads, each time with the plain one."""
    for key in KEYS:
        precision, threads = key.split()
        known = found.setdefault("latency", {}).setdefault(key, {"ratios": {}, "calls": []})
        names = ["plain", *(name for name in found["files"] if name != "plain" and name not in known["ratios"])]
        if len(names) == 1:
            continue
        _say(f"{work.name}: latency, {key}")
        files = {name: work / f"{name}-{precision}.pte" for name in names}
        measured = measuring.measure_together(files, threads=int(threads))
        known["ratios"] |= measuring.ratios(measured)
        rounds = {name: one.round_p50_ms for name, one in measured.items()}
        known["calls"].append({"round_p50_ms": rounds, "where": measured["plain"].where})


def int8_top1(network: Network, work: Path) -> float | None:
    """Accuracy in per cent of the int8 file on the test images; ``None`` if the file cannot be proven."""
    _say(f"{network.arch}: int8")
    try:
        record = to_pte(network, work / "int8", precision="int8", replace=True)
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
        kinds = [("plain", None), ("SK", None), *((f"merged, {budget:.2f}", budget) for budget in record["budgets"])]
        keys = [key for key in KEYS if key in found.get("latency", KEYS[:1])]
        rows = [_cells(found, key, label, budget) for key in keys for label, budget in kinds]
        after = f"after {record['finetune']} epochs more"
        header = [
            "",
            "threads",
            "network",
            "latency, of plain",
            "select",
            "top-1",
            "against SK",
            "against plain",
            after,
        ]
        seeds = len(found["seeds"])
        title = f"`{arch}` on the digits, {seeds} seed{'s' * (seeds > 1)}:"
        parts.append(f"{title}\n\n{markdown_table(header, rows, 'lrlrrrrrr')}")
    return "\n\n".join(parts)


def _cells(found: dict[str, Any], key: str, label: str, budget: float | None) -> list[str]:
    """Latency of the first seed's file, units that select, accuracy, its differences, and that after training on."""
    precision, threads = key.split()
    seeds = list(found["seeds"].values())
    names = [label.lower() if budget is None else str(choice(found, row, key, budget)) for row in seeds]
    points = [row["path"][int(name) if budget else 0] for row, name in zip(seeds, names, strict=True)]
    file = {"plain": "plain", "sk": "select"}.get(names[0], f"step{names[0]}")
    ratio = found.get("latency", {}).get(key, {"ratios": {}})["ratios"].get(file)
    top1, sk, control = (
        [_top1(row, precision, name) for row, name in zip(seeds, some, strict=True)]
        for some in (names, ["sk"] * len(seeds), ["plain"] * len(seeds))
    )
    known = [value for value in top1 if value is not None]
    after = [row["finetuned"].get(name) for row, name in zip(seeds, names, strict=True)]
    return [
        precision,
        threads,
        label,
        "not measured" if ratio is None else f"{ratio:.2f}",
        ", ".join("0" if label == "plain" else str(point["select"]) for point in points),
        f"{statistics.fmean(known):.2f} %" if len(known) == len(top1) else "not proven",
        "" if label == "SK" else _difference(top1, sk),
        "" if label == "plain" else _difference(top1, control),
        "" if None in after or key != KEYS[0] else _difference(after, sk),
    ]


def _top1(row: dict[str, Any], precision: str, name: str) -> float | None:
    """Accuracy of ``plain``, ``sk`` or a step of the path."""
    if precision == "int8":
        return row["int8"].get(name)
    return row[name] if name in row else row["path"][int(name)]["test_top1"]


def _difference(values: Sequence[float | None], others: Sequence[float | None]) -> str:
    """Mean of paired differences, with its interval."""
    differences = [a - b for a, b in zip(values, others, strict=True) if a is not None and b is not None]
    if len(differences) < len(values):
        return ""
    low, high = mean_interval(differences)
    return f"{statistics.fmean(differences):+.2f}" + (f" ({low:+.2f} to {high:+.2f})" if len(values) > 1 else "")


PAGE_TEXT = """\
# Merging: selection only where it pays

A unit whose attention hardly moves is nearly a fixed sum of its branches, and a fixed sum of linear branches is one
convolution. `edge_sk.merge` and `deploy/export.py --merge` keep the units that select, and merge the others.

```console
python deploy/export.py --checkpoint runs/sk_shufflenetv2_1.0-digits-seed0 --merge budget=1.10 --output exports
python deploy/export.py --checkpoint runs/sk_shufflenetv2_1.0-digits-seed0 --merge tolerance=0.3 --output exports
python deploy/export.py --checkpoint runs/sk_shufflenetv2_1.0-digits-seed0 --merge keep=3 finetune=3 --output exports
```

- `budget` is of the latency of the plain network, exported the same way, on this host; `costs=FILE` gives what units
  cost elsewhere, in the form of the `.costs.json` that every call writes.
- `tolerance` is in points of accuracy on at most 512 training images, 167 of 224 pixels. The network has learned them,
  so what it loses on new images can be more: look at the test accuracy in the record.
- A unit is kept, merged exactly (3x3 and 3x3 dilated: one 5x5), or cut to the host's own kernel by a least-squares fit.
- What is merged can be undone only from the checkpoint.
- A call takes some minutes, five on two quiet cores; on busy ones it takes longer and measures worse. With both formats
  and `budget=1.10 plain=RUN` it kept 6 of the 13 units: 1.10 of the plain network's latency on one thread and 1.17 on
  two, where all 13 take 1.17 and 1.29. Test accuracy went from 99.44 to 99.17 %
  ([record](../deploy/results/merged_1.10.json)).

From Python, with the costs that a file holds:

```python
merged, report = edge_sk.merge(model, images, budget=1.10, costs="exports/NAME.costs.json")
```

## Before training

`edge_sk.graft` takes a budget too. Sites are taken as long as their cost fits, those of the middle stages (strides 8
and 16) first, then the earlier ones, the last stage last: in the paper, selection follows the scale of the object in
the lower and middle stages, and no longer in the last. What a site costs is measured with every site grafted:

```console
python deploy/unit_costs.py --arch timm:mobilenetv2_100@kernels=auto --output costs.json
```

```python
grafted, report = edge_sk.graft(model, budget=1.10, costs="costs.json")
```

## Measured

{tables}

Host latency at the runs' own image size ({size}), of the first seed's files. Differences are points of test accuracy,
means over seeds, with Student's 95 % interval; one test digit is 0.28 points. int8 is compared with int8. "After":
against SK, in fp32, trained on after merging by the recipe at a tenth of its learning rate. Units are taken in the
order that the first costs of fp32 on one thread give.

{noise}Targets were a loss of at most 0.3 points at 1.10 and 0.5 at 1.05.
{missing}
{curves}

The record is [deploy/results/merging.json](../deploy/results/merging.json), made by

```console
{commands}
```
"""


def page(record: dict[str, Any]) -> str:
    """docs/merging.md."""
    studies = record["studies"]
    manifests = [
        found[kind] for kind in ("manifest", "latency_manifest") for found in studies.values() if kind in found
    ]
    return PAGE_TEXT.format(
        tables=tables(record),
        curves="\n\n".join(
            f"![test accuracy of {arch} against latency](merging/{picture(arch).name})" for arch in studies
        ),
        commands="\n".join(dict.fromkeys(made["command"] for made in manifests)),
        missing=missing(record),
        noise=noise(record),
        size=" and ".join(sorted({f"{found['input_size'][-1]} pixels" for found in studies.values()})),
    )


def curve(found: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """A seed's path with latencies by today's costs."""
    ratios = ratios_by_costs(found, row, KEYS[0])
    return [point | {"ratio_by_costs": ratio} for point, ratio in zip(row["path"], ratios, strict=True)]


def picture(arch: str) -> Path:
    """The curve of an architecture."""
    return PAGE.parent / "merging" / f"{re.sub('[^a-z0-9._-]+', '-', arch)}.png"


def missing(record: dict[str, Any]) -> str:
    """What the record lacks of three seeds, both networks, both precisions, and one and two threads."""
    lacks = [arch for arch in ARCHS if arch not in record["studies"]]
    for arch, found in record["studies"].items():
        lacks += [f"latency of {arch}, {key}" for key in KEYS if key not in found.get("latency", {})]
        if len(found["seeds"]) < 3:
            lacks.append(f"a third seed of {arch}")
    return f"\nNot measured yet: {'; '.join(lacks)}.\n" if lacks else ""


def noise(record: dict[str, Any]) -> str:
    """How far the ratios of the rounds lie apart."""
    spreads = []
    for found in record["studies"].values():
        for measured in found.get("latency", {}).values():
            for rounds in (call["round_p50_ms"] for call in measured["calls"]):
                for times in rounds.values():
                    each = [time / base for time, base in zip(times, rounds["plain"], strict=True)]
                    spreads.append(max(each) - min(each))
    if not spreads:
        return ""
    return (
        "Files took turns in three rounds; the ratios of one file's rounds lie "
        f"{statistics.median(spreads):.3f} apart in the median and at most {max(spreads):.3f}. "
    )


if __name__ == "__main__":
    sys.exit(main())
