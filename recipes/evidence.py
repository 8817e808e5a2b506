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
    """Draw how far networks are ahead of the plain one, with intervals, against latency; plain ones are joined."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    titles = list(dict.fromkeys(item.title for item in COMPARISONS.values()))
    plain: dict[str, dict[float, float]] = {}
    for key in (key for key in ratios if key in records):
        item = COMPARISONS[key]
        colour = f"C{titles.index(item.title)}"
        for entry in records[key]["networks"]:
            x, y, label = ratios[key].get(entry["arch"]), entry.get("difference", 0.0), item.archs[entry["arch"]]
            if x is None or y is None:
                continue
            low, high = entry.get("difference_ci95") or (y, y)
            axes.errorbar(
                x, y, yerr=[[y - low], [high - y]], fmt="D" if label == "SK" else "o", color=colour, capsize=3
            )
            axes.annotate(label, (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
            if label.startswith("plain"):
                plain.setdefault(item.title, {})[x] = y
    for title, curve in plain.items():
        axes.plot(*zip(*sorted(curve.items()), strict=True), color=f"C{titles.index(title)}", label=f"{title}, plain")
    axes.set(xlabel="host latency, of the plain network's", ylabel="points of accuracy ahead of the plain network")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    sys.exit(main())
