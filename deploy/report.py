"""Compare networks for phones: count, export, verify and measure each; write an HTML page and Markdown.

edge-sk report --arch shufflenetv2_1.0 sk_shufflenetv2_1.0 timm:mobilenetv4_conv_small --output reports/one
edge-sk report --checkpoint runs/plain runs/sk --output reports/two --against reports/one/report.json
edge-sk report --records from_phone/*.json --output reports/three

The same command continues after an interruption: it keeps files that are up to date. Exit codes: 0 done, 1 worse than
--against beyond the noise, 2 bad input or a file that could not be made (the report names it).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deploy.collecting import Request, collect, join, read_records
from edge_sk.errors import InputError, script
from edge_sk.export import network as networks
from edge_sk.export import report as reports
from edge_sk.export.record import Format, Precision
from edge_sk.export.report.answers import answers
from edge_sk.export.report.model import Report, file_title
from edge_sk.files import check_output, write_text
from edge_sk.manifest import manifest

# Core ML's own float is half precision: fp16 is to an .mlpackage what fp32 is to a .pte.
PRECISIONS: dict[Format, tuple[Precision, ...]] = {"pte": ("fp32", "int8"), "mlpackage": ("fp16", "int8")}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="edge-sk report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--arch", nargs="+", default=[], help="names of the zoo, timm:NAME or torchvision:NAME, untrained")
    p.add_argument("--checkpoint", nargs="+", default=[], metavar="RUN", help="run folders of edge-sk train")
    p.add_argument("--records", nargs="+", default=[], metavar="FILE", help="records or reports made elsewhere")
    p.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the pages and the files")
    p.add_argument("--against", metavar="OLD.json", help="an older report.json: name what got worse; exit code 1")
    p.add_argument("--formats", nargs="+", choices=tuple(PRECISIONS), default=list(PRECISIONS), help="default: both")
    p.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="thread counts of latency (default: 1 2)")
    p.add_argument("--rounds", type=int, default=3, help="fresh processes per thread count (default: 3)")
    p.add_argument("--runs", type=int, default=50, help="timed forwards per file and round (default: 50)")
    p.add_argument("--input-size", type=int, metavar="PIXELS", help="side of the image (default: the network's own)")
    p.add_argument("--data", help="images for parity and calibration (default: the training's; digits with --arch)")
    p.add_argument("--unfinished", action="store_true", help="take runs whose training is not finished, too")
    return p


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Make the report that the command line asks for."""
    args = parser().parse_args(argv)
    _check(args)
    command = ["deploy/report.py", *(sys.argv[1:] if argv is None else argv)]
    # Check all input before minutes of work.
    old = reports.read_report(args.against) if args.against else None
    elsewhere = read_records(args.records)
    chosen = _networks(args)
    check_output(args.output)
    for network in chosen:
        if network.training is not None:
            print(f"warning: the training of {network.weights} is {network.training}", file=sys.stderr)
        network.check_images(None, calibration="pte" in args.formats)
    report = _collect(chosen, args, command) if chosen else Report(records=[], manifest=manifest(command))
    report.records = join([*report.records, *elsewhere])
    if not report.records:
        reasons = "; ".join(f"{file_title(failure)}: {failure.reason}" for failure in report.failures)
        raise InputError(f"no file could be made: {reasons}")
    changes = reports.compare(old, report) if old else None
    reports.write_report(args.output / "report.json", report)
    for name, render in (("report.md", reports.render_markdown), ("report.html", reports.render_html)):
        write_text(args.output / name, render(report, changes))
    for answer in answers(report):
        print(f"{answer.question} {answer.answer}")
    for failure in report.failures:
        print(f"error: {file_title(failure)} ({failure.stage}): {failure.reason}", file=sys.stderr)
    worse = [change for change in changes or () if change.verdict == "worse"]
    for change in worse:
        print(f"regression: {change.file}: {change.what}", file=sys.stderr)
    print(f"{args.output / 'report.html'}  report.md  report.json")
    return 1 if worse else 2 if report.failures else 0


def _check(args: argparse.Namespace) -> None:
    if not (args.arch or args.checkpoint or args.records):
        raise InputError("nothing to report on; give --arch, --checkpoint or --records")
    for name in ("rounds", "runs"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)} measures nothing; give at least 1")
    if min(args.threads) < 1:
        raise InputError(f"--threads {min(args.threads)} is not a number of threads; give at least 1")
    if args.input_size is not None and args.input_size < 1:
        raise InputError(f"--input-size {args.input_size} is no image; give the side in pixels")


def _networks(args: argparse.Namespace) -> list[networks.Network]:
    chosen = [
        networks.from_run(run, data=args.data, unfinished=args.unfinished) for run in dict.fromkeys(args.checkpoint)
    ]
    chosen += [networks.from_arch(arch, data=args.data) for arch in dict.fromkeys(args.arch)]
    if args.input_size is None:
        return chosen
    sides = (args.input_size, args.input_size)
    return [dataclasses.replace(network, input_size=(network.input_size[0], *sides)) for network in chosen]


def _collect(chosen: list[networks.Network], args: argparse.Namespace, command: list[str]) -> Report:
    request = Request(
        artifacts=tuple((name, precision) for name in args.formats for precision in PRECISIONS[name]),
        threads=tuple(dict.fromkeys(args.threads)),
        rounds=args.rounds,
        runs=args.runs,
        argv=command,
    )
    with _progress(request.steps(len(chosen))) as step:
        return collect(chosen, args.output, request, step)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar in a terminal, a line per step elsewhere; on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    numbers = itertools.count(1)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def step(what: str) -> None:
            number = next(numbers)
            bar.update(task, completed=number - 1, description=what)
            if not console.is_terminal:
                console.print(f"[{number}/{total}] {what}", markup=False)

        yield step


if __name__ == "__main__":
    sys.exit(main())
