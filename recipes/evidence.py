"""Write docs/evidence.md from the records in recipes/results: ``python recipes/evidence.py``.

All numbers on the page and in its plot come from records. What has no record is called not run yet.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_sk.errors import script
from edge_sk.files import atomic_write, write_text
from recipes.experiments.page import RATIOS, page
from recipes.experiments.plan import COMPARISONS, Record, commands, read_ratios, read_records

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "recipes" / "results"
PAGE = ROOT / "docs" / "evidence.md"
PLOT = ROOT / "docs" / "evidence" / "pareto.png"


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and its plot, or print the commands behind them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--commands", action="store_true", help="print the commands that make the records, and stop")
    parser.add_argument("--finished", action="store_true", help="with --commands: train nothing, use what is finished")
    args = parser.parse_args(argv)
    if args.commands:
        for command in commands(finished=args.finished):
            print(f"python {shlex.join(command)}")
        return 0
    records, ratios = read_records(RESULTS), read_ratios(RESULTS)
    write_text(PAGE, page(records, ratios))
    if any(key in records for key in ratios):
        plot(records, ratios, PLOT)
    return 0


def plot(records: Mapping[str, Record], ratios: RATIOS, path: Path) -> None:
    """Draw how far networks are ahead of the plain one, with intervals, against latency; plain ones are joined.

    A panel for each network: plain, widened, SK, and one 5x5 as where merged. The table has the others.
    """
    from matplotlib.figure import Figure

    titles = list(dict.fromkeys(COMPARISONS[key].title for key in ratios if key in records))
    figure = Figure(figsize=(7.5, 4 * len(titles)), layout="constrained")
    for title, axes in zip(titles, figure.subplots(len(titles), squeeze=False)[:, 0], strict=True):
        plain: dict[float, float] = {}
        shown: set[str] = set()
        for key in (key for key in ratios if key in records and COMPARISONS[key].title == title):
            for entry in records[key]["networks"]:
                x, y = ratios[key].get(entry["arch"]), entry.get("difference", 0.0)
                label = COMPARISONS[key].archs[entry["arch"]]
                if x is None or y is None or label in shown or not label.startswith(("plain", "SK", "one 5x5")):
                    continue
                shown.add(label)
                low, high = entry.get("difference_ci95") or (y, y)
                axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="o", capsize=3, label=label)
                if label.startswith("plain"):
                    plain[x] = y
        axes.plot(*zip(*sorted(plain.items()), strict=True), color="grey", zorder=0)
        axes.set(title=title, xlabel="host latency, of the plain network's", ylabel="points of accuracy ahead of it")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    sys.exit(main())
