"""Measure what the README claims about latency, and write deploy/results/latency.json: one command, one quiet machine.

python deploy/claims.py --work exports/claims

Prints the README's table of ratios and the NOTES' table of operators. "Stock" networks are torchvision's own classes
lowered the ordinary way, without any of our rewrites and without the normalisation that our files carry inside.
"Textbook" is SK as the paper's equations read: stack, sum, softmax over the branch axis. "Untouched" is our training
form lowered without the rewrites. Ratios are of medians of runs in which the files take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError, script  # isort: skip (before torch: Ctrl-C)
import torch
from pydantic import BaseModel, Field, RootModel
from torch import nn

import edge_sk
from edge_sk.export import to_pte
from edge_sk.export.executorch import delegation, executorch, latency
from edge_sk.export.network import from_arch
from edge_sk.export.record import Precision
from edge_sk.files import artifact_path, atomic_write, check_output, write_text
from edge_sk.manifest import manifest
from edge_sk.reading import read_json, validated
from edge_sk.stderr import capture_stderr
from recipes.markdown_tables import markdown_table
from recipes.textbook import textbook

RESULT = Path(__file__).parent / "results" / "latency.json"
OURS: tuple[tuple[str, Precision], ...] = tuple(
    (arch, precision)
    for name in ("shufflenetv2_1.0", "mobilenetv2_1.0")
    for arch in (f"sk_{name}", name)
    for precision in ("fp32", "int8")
)
STOCK = ("torchvision:shufflenet_v2_x1_0", "torchvision:mobilenet_v2")
# Numerator, denominator, and the ratio that was aimed at, where there was such a goal. First what SK costs: the plain
# network, exported by us at the same precision. Then what our export is worth, to SK and to the plain network alike.
CLAIMS: tuple[tuple[str, str, float | None], ...] = (
    ("sk_shufflenetv2_1.0_xnnpack_fp32", "shufflenetv2_1.0_xnnpack_fp32", None),
    ("sk_shufflenetv2_1.0_xnnpack_int8", "shufflenetv2_1.0_xnnpack_int8", None),
    ("sk_mobilenetv2_1.0_xnnpack_fp32", "mobilenetv2_1.0_xnnpack_fp32", None),
    ("sk_mobilenetv2_1.0_xnnpack_int8", "mobilenetv2_1.0_xnnpack_int8", None),
    ("shufflenetv2_1.0_xnnpack_fp32", "stock-shufflenet_v2_x1_0", None),
    ("sk_shufflenetv2_1.0_xnnpack_fp32", "stock-shufflenet_v2_x1_0", 1.05),
    ("mobilenetv2_1.0_xnnpack_fp32", "stock-mobilenet_v2", None),
    ("sk_mobilenetv2_1.0_xnnpack_fp32", "stock-mobilenet_v2", 1.25),
    ("sk_shufflenetv2_1.0_xnnpack_fp32", "textbook-sk_shufflenetv2_1.0", 0.75),
)
# Seconds to rewrite and lower against seconds to lower the training form. Medians of rounds in which they take turns.
EXPORT_CLAIMS: tuple[tuple[str, str, float | None], ...] = (
    ("sk_shufflenetv2_1.0_xnnpack_fp32", "untouched-sk_shufflenetv2_1.0", 0.5),
)
EXPORT_ROUNDS = 3


class MadeFile(BaseModel, extra="forbid"):
    """What an exported file is made of."""

    delegates: int
    left: dict[str, int]
    export_seconds: float = Field(gt=1e-9, lt=1e9)
    round_export_seconds: list[float] = []
    size_bytes: int
    in_float: list[str] = []
    rewrites: list[str] = []


class MadeFiles(RootModel[dict[str, MadeFile]]):
    """``made.json`` in ``--work``: every exported file by its name without the suffix."""


def lower_ordinarily(make: Callable[[], nn.Module], path: Path) -> dict[str, Any]:
    """Lower a network as ExecuTorch's documentation says, and nothing else; tells what the file is made of."""
    exir = executorch("exir")
    partitioner = executorch("backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
    model = make().eval()
    started = time.perf_counter()
    with capture_stderr():
        exported = torch.export.export(model, (torch.zeros(1, 3, 224, 224),))
        edge = exir.to_edge_transform_and_lower(exported, partitioner=[partitioner()])
        found = delegation.inspect(edge.exported_program().graph_module, {})
        content = bytes(edge.to_executorch().buffer)
    seconds = time.perf_counter() - started
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return {
        "delegates": found.delegates,
        "left": {item.operator: item.count for item in found.left},
        "export_seconds": round(seconds, 2),
        "size_bytes": len(content),
    }


def export_ours(arch: str, precision: Precision, folder: Path) -> dict[str, Any]:
    """Export as ``deploy/export.py`` does; tells what the file is made of."""
    record = to_pte(from_arch(arch), folder, precision=precision)
    assert record.delegation is not None
    return {
        "delegates": record.delegation.delegates,
        "left": {item.operator: item.count for item in record.delegation.left},
        "in_float": record.delegation.in_float,
        "export_seconds": record.export_seconds,
        "size_bytes": record.size_bytes,
        "rewrites": record.rewrites,
    }


def exports(work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """How each file is made, by its name without the suffix."""
    ours = partial(edge_sk.create_model, "sk_shufflenetv2_1.0")
    ordinary = {f"stock-{name.partition(':')[2]}": partial(edge_sk.create_model, name) for name in STOCK}
    ordinary |= {"textbook-sk_shufflenetv2_1.0": lambda: textbook(ours()), "untouched-sk_shufflenetv2_1.0": ours}
    made: dict[str, Callable[[], dict[str, Any]]] = {
        stem: partial(lower_ordinarily, make, artifact_path(work, stem, ".pte")) for stem, make in ordinary.items()
    }
    return made | {
        f"{arch}_xnnpack_{precision}": partial(export_ours, arch, precision, work) for arch, precision in OURS
    }


def export_all(work: Path) -> dict[str, dict[str, Any]]:
    """Export every file anew, those of the claim on export time in several rounds."""
    makers = exports(work)
    made: dict[str, dict[str, Any]] = {}
    for stem, make in makers.items():
        say(f"exporting {stem}")
        made[stem] = make()
    seconds = {stem: [made[stem]["export_seconds"]] for claim in EXPORT_CLAIMS for stem in claim[:2]}
    for number in range(2, EXPORT_ROUNDS + 1):
        for stem, rounds in seconds.items():
            say(f"exporting {stem}, round {number} of {EXPORT_ROUNDS}")
            rounds.append(makers[stem]()["export_seconds"])
    for stem, rounds in seconds.items():
        made[stem] |= {"export_seconds": statistics.median(rounds), "round_export_seconds": rounds}
    return made


def say(what: str) -> None:
    """Show progress on stderr."""
    print(what, file=sys.stderr, flush=True)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Export, measure, write, and say which claims hold."""
    p = argparse.ArgumentParser(
        prog="deploy/claims.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for the exported files")
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default: 1 2)")
    p.add_argument("--rounds", type=int, default=5, help="fresh processes per thread count (default: 5)")
    p.add_argument("--runs", type=int, default=100, help="timed forwards per file and round (default: 100)")
    p.add_argument("--reuse", action="store_true", help="measure the files of an earlier call again")
    p.add_argument("--output", type=Path, default=RESULT, help="default: deploy/results/latency.json")
    args = p.parse_args(argv)
    # Before a quarter of an hour of work: everything that can be wrong with the input.
    for name in ("rounds", "runs"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)} measures nothing; give at least 1")
    if min(args.threads) < 1:
        raise InputError(f"--threads {min(args.threads)} is not a number of threads; give at least 1")
    if args.output.is_dir():
        raise InputError(f"--output {args.output} is a folder; name a .json file")
    check_output(args.work)
    check_output(args.output.parent)
    facts = args.work / "made.json"
    if args.reuse and facts.exists():
        made = validated(MadeFiles, read_json(facts), facts).model_dump(exclude_unset=True)
        if made.keys() != exports(args.work).keys():
            raise InputError(f"{facts} is of other files than are measured today; run without --reuse")
    else:
        made = export_all(args.work)
        write_text(facts, json.dumps(made))
    files = {stem: artifact_path(args.work, stem, ".pte") for stem in made}
    for threads in args.threads:
        say(f"measuring {len(files)} files with {threads} threads, {args.rounds} rounds")
        measured = latency.measure(list(files.values()), threads=threads, rounds=args.rounds, runs=args.runs)
        for stem, one in zip(files, measured, strict=True):
            made[stem].setdefault("latency", {})[str(threads)] = one.model_dump()
    for stem, file in files.items():
        shares: dict[str, float] = {}
        for operator in latency.operator_times(file):
            shares[operator.kind] = round(shares.get(operator.kind, 0.0) + operator.p50_ms, 4)
        made[stem]["operators_ms"] = shares
    result = {
        "claims": claims(made),
        "exports": export_claims(made),
        "files": made,
        "manifest": manifest(["deploy/claims.py", *(sys.argv[1:] if argv is None else argv)]),
    }
    write_text(args.output, json.dumps(result, indent=1) + "\n")
    print(ratio_table(result), operator_table(result), sep="\n\n")
    for claim in result["claims"] + result["exports"]:
        if claim["at_most"] is not None:
            what = f"{claim['threads']} threads" if "threads" in claim else "seconds to export"
            print(
                f"{claim['file']} / {claim['against']}, {what}: {claim['ratio']:.3f}; aimed at {claim['at_most']:.2f}: "
                f"{'reached' if claim['holds'] else 'NOT REACHED'}"
            )
    return 0


def ratio_table(record: dict[str, Any]) -> str:
    """README's table: every claim's ratio of medians and, in brackets, the least and the largest of a round."""
    cells = {
        (one["file"], one["against"], one["threads"]): "{:.2f} ({:.2f} to {:.2f})".format(one["ratio"], *one["rounds"])
        for one in record["claims"]
    }
    threads = sorted({count for *_, count in cells})
    rows = [
        [title(file), title(against), *(cells.get((file, against, count), "not measured") for count in threads)]
        for file, against, _ in CLAIMS
    ]
    header = ["file", "against", *(f"{count} thread{'s' * (count > 1)}" for count in threads)]
    return markdown_table(header, rows, "ll" + "r" * len(threads))


def operator_table(record: dict[str, Any]) -> str:
    """The table of NOTES.md: milliseconds by kind of operator on one thread, and the median they belong to."""
    files = {stem: file for stem, file in record["files"].items() if "1" in file["latency"]}
    kinds = sorted({kind for file in files.values() for kind in file["operators_ms"]})
    rows = []
    for stem, file in files.items():
        spent = file["operators_ms"]
        times = [*(spent.get(kind, 0.0) for kind in kinds), sum(spent.values()), file["latency"]["1"]["p50_ms"]]
        rows.append([title(stem), *(f"{ms:.2f}" for ms in times)])
    return markdown_table(["file", *kinds, "sum", "median"], rows, "l" + "r" * (len(kinds) + 2))


def title(stem: str) -> str:
    """What the tables call a file."""
    kind, _, name = stem.partition("-")
    return {
        "stock": f"torchvision's {name} fp32",
        "textbook": f"{name} fp32, textbook",
        "untouched": f"{name} fp32, training form",
    }.get(kind, stem.replace("_xnnpack_", " "))


def export_claims(made: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims on export time with what was measured; proving the file is not part of it."""
    rows = []
    for file, against, at_most in EXPORT_CLAIMS:
        if {file, against} <= made.keys():
            seconds = [made[stem]["export_seconds"] for stem in (file, against)]
            ratio = seconds[0] / seconds[1]
            rows.append({"file": file, "against": against, "seconds": seconds} | _judged(ratio, at_most))
    return rows


def claims(made: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every claim whose files were measured, with what was measured."""
    rows = []
    for file, against, at_most in CLAIMS:
        if not {file, against} <= made.keys():
            continue
        for threads, ours in made[file]["latency"].items():
            theirs = made[against]["latency"][threads]
            by_round = [a / b for a, b in zip(ours["round_p50_ms"], theirs["round_p50_ms"], strict=True)]
            rows.append(
                {"file": file, "against": against, "threads": int(threads)}
                | _judged(ours["p50_ms"] / theirs["p50_ms"], at_most)
                | {
                    "rounds": [round(min(by_round), 4), round(max(by_round), 4)],
                    "ratio_min": round(ours["min_ms"] / theirs["min_ms"], 4),
                }
            )
    return rows


def _judged(ratio: float, at_most: float | None) -> dict[str, Any]:
    return {"ratio": round(ratio, 4), "at_most": at_most, "holds": None if at_most is None else ratio <= at_most}


if __name__ == "__main__":
    sys.exit(main())
