"""Measure exported files on this host: latency, load time, memory, and where the time goes.

edge-sk benchmark exports --threads 1 2 --output exports/latency.jsonl
edge-sk benchmark a.pte b.pte --operators
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from edge_sk.errors import InputError, script
from edge_sk.export.executorch import latency
from edge_sk.export.record import Latency, OperatorTime, record_of, record_path, write_record
from edge_sk.export.report.latencies import noise_ms
from edge_sk.files import check_output, file_digest, write_text
from edge_sk.reading import parse_json, read_text, validated


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="edge-sk benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("files", nargs="+", metavar="DIR_OR_FILE", help=".pte files, or folders of them")
    p.add_argument("--threads", nargs="+", type=int, default=[1], help="thread counts (default: 1)")
    p.add_argument("--rounds", type=int, default=3, help="fresh processes per thread count (default: 3)")
    p.add_argument("--runs", type=int, default=50, help="timed forwards per file and round (default: 50)")
    p.add_argument("--operators", action="store_true", help="also trace where the time goes")
    p.add_argument("--output", type=Path, metavar="FILE", help="JSON lines, one per file and thread count")
    p.add_argument("--resume", action="store_true", help="keep what --output already has of the same files")
    return p


class Row(Latency):
    """A line of ``--output``: a measurement, and the file that it is of."""

    file: str
    sha256: str
    operators: list[OperatorTime] = Field(default_factory=list)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and add the measurement to the record beside each file."""
    args = parser().parse_args(argv)
    for name in ("rounds", "runs"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)} measures nothing; give at least 1")
    if min(args.threads) < 1:
        raise InputError(f"--threads {min(args.threads)} is not a number of threads; give at least 1")
    if args.resume and not args.output:
        raise InputError("--resume continues an --output file; name it")
    if args.output:
        if args.output.is_dir():
            raise InputError(f"--output {args.output} is a folder; name a file")
        check_output(args.output.parent)
    files = list(_files(args.files))
    rows = _read(args.output) if args.resume and args.output.exists() else []
    digests = {file: _digest(file) for file in files}
    for threads in args.threads:
        done = {(row["sha256"], row["threads"]) for row in rows if not args.operators or "operators" in row}
        todo = [file for file in files if (digests[file], threads) not in done]
        if not todo:
            continue
        for file, measured in zip(
            todo,
            latency.measure(todo, threads=threads, rounds=args.rounds, runs=args.runs),
            strict=True,
        ):
            row: dict[str, Any] = {"file": file.name, "sha256": digests[file]} | measured.model_dump()
            if args.operators:
                row["operators"] = [o.model_dump() for o in latency.operator_times(file, threads=threads)]
            rows = [old for old in rows if (old["sha256"], old["threads"]) != (row["sha256"], threads)] + [row]
            if args.output:
                _write(args.output, rows)
            _add_to_record(file, measured)
            _print(row, noise_ms(measured))
    if packages := [package.name for name in args.files for package in sorted(Path(name).glob("*.mlpackage"))]:
        print(f"not measured, as that takes a Mac (deploy/mac/latency.py): {', '.join(packages)}", file=sys.stderr)
    return 0


def _files(given: Sequence[str]) -> Iterator[Path]:
    for name in given:
        path = Path(name)
        if path.suffix == ".mlpackage":
            raise InputError(f"{path} runs on Apple's systems only: measure it on a Mac with deploy/mac/latency.py")
        found = sorted(path.glob("*.pte")) if path.is_dir() else [path]
        if not found or not all(file.is_file() for file in found):
            raise InputError(f"{path} is neither a .pte file nor a folder with one; edge-sk export writes them")
        yield from found


def _digest(file: Path) -> str:
    """SHA-256 of a file, which must be its record's, if it has one."""
    if record_path(file).exists():
        record_of(file)
    return file_digest(file)


def _read(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        origin = f"line {number} of {path} is not a measurement; move the file away or drop --resume"
        rows.append(validated(Row, parse_json(line, origin), origin).model_dump(exclude_unset=True))
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _add_to_record(file: Path, measured: Latency) -> None:
    """Put the measurement in the file's record, if it has one."""
    if not record_path(file).exists():
        return
    record = record_of(file)
    record.add_latency(measured)
    write_record(file, record)
    if record.maps:
        print(f"{file.name} returns {record.maps}")


def _print(row: dict[str, Any], noise: float) -> None:
    memory = "" if row["peak_memory_mb"] is None else f", memory {row['peak_memory_mb']:.0f} MB"
    print(
        f"{row['file']}  {row['threads']} thread{'s' if row['threads'] > 1 else ''}: "
        f"p50 {row['p50_ms']:.3f} ± {noise:.3f} ms, p90 {row['p90_ms']:.3f}, min {row['min_ms']:.3f} "
        f"({row['runs']} runs), load {row['load_ms']:.1f} ms{memory}  [{row['where']}]",
        flush=True,
    )
    shares: dict[str, float] = {}
    for operator in row.get("operators", ()):
        shares[operator["kind"]] = shares.get(operator["kind"], 0.0) + operator["share"]
        print(
            f"    {operator['name']:45s} x{operator['calls']:<4d} {operator['p50_ms']:8.3f} ms {operator['share']:6.1%}"
        )
    if shares:
        print("    " + ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()))


if __name__ == "__main__":
    sys.exit(main())
