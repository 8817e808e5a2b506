"""The command ``edge-sk``: one program, whose subcommands are the scripts of ``recipes/`` and ``deploy/``.

The wheel has the scripts inside this package; in a clone they lie beside it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    "train": ("recipes.train", "train a network, or continue its training"),
    "evaluate": ("recipes.evaluate", "test a trained network"),
    "export": ("deploy.export", "write files for phones, each proven to compute what the network computes"),
    "classify": ("deploy.classify", "name what an exported file sees in photographs"),
    "benchmark": ("deploy.benchmark", "measure exported files on this computer"),
    "report": ("deploy.report", "export, measure and compare networks on one page"),
    "search": ("recipes.search", "search the most accurate network within a latency"),
    "profile": ("edge_sk.profiling.__main__", "count parameters, MACs and activations"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand with the arguments behind it; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="edge-sk",
        description="Selective-kernel networks for phones.",
        epilog="commands:\n"
        + "".join(f"  {name:<11}{does}\n" for name, (_, does) in COMMANDS.items())
        + "\nedge-sk COMMAND --help explains a command. compare, attention, publish and others are scripts of the "
        "repository:\npython recipes/compare.py --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("edge-sk"))
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's own arguments")
    args = parser.parse_args(argv)
    if args.command not in COMMANDS:
        parser.error(
            f"no command {args.command!r}; there are {', '.join(COMMANDS)}. In the repository there are more scripts: "
            "python recipes/compare.py, ..."
        )
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command's `main`, as in edge_sk.errors
    here = Path(__file__).resolve().parent
    # As `recipes` and `deploy` the scripts know each other. Nothing else in site-packages shall be called so.
    scripts = str(here if (here / "recipes").is_dir() else here.parent)
    sys.path.insert(0, scripts)
    # A search starts other scripts.
    os.environ["PYTHONPATH"] = os.pathsep.join([scripts, *filter(None, [os.environ.get("PYTHONPATH")])])
    return importlib.import_module(COMMANDS[args.command][0]).main(args.arguments)
