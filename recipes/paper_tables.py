"""The SKNet paper's tables with our count beside every figure.

python recipes/paper_tables.py                    # Tables 1 to 7 and S9, as text
python recipes/paper_tables.py --tables 4 6       # some of them
python recipes/paper_tables.py --json             # as data
python recipes/paper_tables.py --write            # renew paper_tables.md and the other files made here

Li et al., *Selective Kernel Networks*, CVPR 2019, https://arxiv.org/abs/1903.06586. Error rates are always the paper's;
parameters and MACs are ours, counted by ``edge_sk.profile`` on the network that ``edge_sk.create_model`` builds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError, script
from edge_sk.files import write_text
from edge_sk.manifest import manifest
from edge_sk.profiling import print_table, rich_table
from recipes.paper import text
from recipes.paper.plot import plot
from recipes.paper.tables import TABLES, Table, compute, increments
from recipes.paper.text import markdown

HERE = Path(__file__).resolve().parent


def _print(tables: Sequence[Table]) -> None:
    for table in tables:
        header = text.header(table)
        align = "ll" + "r" * (len(header) - 2)
        shown = rich_table(header, text.cells(table), align, title=f"Table {table.key}: {table.title}")
        for row, line in zip(table.rows, shown.rows, strict=True):
            line.style = "bold" if row.is_sk else None
        print_table(shown)
        for number, note in enumerate(table.notes, 1):
            print(f"  {number}. {note}")
        if table.note:
            print(f"  {table.note}")
        print()
    if any(table.key == "4" for table in tables):
        title = "Table 4: what SE and SK add to the plain network"
        print_table(rich_table(text.INCREMENT_HEADER, text.increment_cells(), "lrrrrr", title=title))
    print("Error rates are the paper's. † quoted from memory, unconfirmed.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The SKNet paper's tables with our count beside every figure.")
    keys = [table.key for table in TABLES]
    parser.add_argument("--tables", nargs="+", metavar="KEY", help=f"only these, of {', '.join(keys)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--plot", metavar="DIR", help="write accuracy against MACs and parameters, PNG and SVG, to DIR")
    parser.add_argument("--write", action="store_true", help="renew the files of the repository that this script makes")
    return parser


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Count and print."""
    args = _parser().parse_args(argv)
    known = {table.key.lower(): table for table in TABLES}
    for key in args.tables or ():
        if key.lower() not in known:
            raise InputError(f"--tables {key!r} is not a table here; there are {', '.join(t.key for t in TABLES)}")
    if args.write and args.tables:
        raise InputError("--write renews whole files: leave out --tables")
    tables = [known[key.lower()] for key in args.tables] if args.tables else TABLES
    if args.json:
        print(_json(tables, argv))
    elif args.markdown:
        print(markdown(tables), end="")
    elif args.write:
        files = {
            HERE / "paper_tables.md": markdown(tables),
            HERE / "results" / "paper_tables.json": _json(tables, argv) + "\n",
        }
        for path, content in files.items():
            write_text(path, content)
            print(f"wrote {path}")
    elif not args.plot or args.tables:
        _print(tables)
    if args.plot or args.write:
        for path in plot(Path(args.plot) if args.plot else HERE.parent / "docs"):
            print(f"wrote {path}")
    return 0


def _json(tables: Sequence[Table], argv: Sequence[str] | None) -> str:
    record: dict[str, Any] = {"tables": [compute(table) for table in tables]}
    if any(table.key == "4" for table in tables):
        record["table4_increments"] = increments()
    command = ["recipes/paper_tables.py", *(sys.argv[1:] if argv is None else argv)]
    return json.dumps(record | manifest(command), indent=2)


if __name__ == "__main__":
    sys.exit(main())
