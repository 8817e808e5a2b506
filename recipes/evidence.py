"""Write docs/evidence.md from the records in recipes/results: ``python recipes/evidence.py``.

All numbers on the page and in its plots come from records. An experiment without a record is shown as not run, with
its command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_sk.errors import script
from edge_sk.files import write_text
from recipes.experiments import comparison
from recipes.experiments.attention_figure import plot
from recipes.experiments.page import as_text, page
from recipes.experiments.plan import ATTENTION, COMPARISONS, EXPERIMENTS, read_records

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "recipes" / "results"
PAGE = ROOT / "docs" / "evidence.md"
PLOTS = ROOT / "docs" / "evidence"


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and its plots, or print the commands behind them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--commands", action="store_true", help="print the commands that make the records, and stop")
    args = parser.parse_args(argv)
    if args.commands:
        for item in EXPERIMENTS:
            if item.repeatable:
                print(as_text(item.command))
        return 0
    records = read_records(RESULTS)
    text = page(records)
    for item in COMPARISONS.values():
        if item.key in records:
            record = records[item.key]
            title = f"{record['data']}, {record['epochs']} epochs, seeds {', '.join(map(str, record['seeds']))}"
            path = PLOTS / f"{item.key}.png"
            comparison.plot(record["networks"], path, title=title, labels=item.archs)
    for item in ATTENTION:
        if item.key in records:
            plot(records[item.key], PLOTS / f"{item.key}.png", title=item.title.replace("`", ""))
    write_text(PAGE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
