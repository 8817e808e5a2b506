"""Print docs/record.md: the fields of records and reports, from their models.

python deploy/record_schema.py > docs/record.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from edge_sk.errors import script
from edge_sk.export.report import Report
from recipes.markdown_tables import allowed, markdown_table

INTRODUCTION = """\
# The JSON of records and reports

`deploy/export.py` writes one record beside each file, `NAME.pte.json` or `NAME.mlpackage.json`; `deploy/benchmark.py`
adds latencies to it; `deploy/report.py` writes `report.json`, which holds many. All are read strictly: an unknown or
missing field is an error that names it. Records made on a phone or a Mac have the same fields, and
`deploy/report.py --records` joins them: copy the record along with the file, and append to `latency`.

`null` or an empty list means "not measured". `python deploy/record_schema.py` prints this page.
"""


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Print the page."""
    argparse.ArgumentParser(
        prog="deploy/record_schema.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    print(describe(), end="")
    return 0


def describe() -> str:
    """Return the page, with a table for each model."""
    report = Report.model_json_schema()
    models = report.pop("$defs") | {"Report": report}
    return "\n".join([INTRODUCTION, _section("Record", models.pop("Record")), *map(_section, models, models.values())])


def _section(name: str, model: dict[str, Any]) -> str:
    rows = [
        (f"`{field}`", allowed(schema), schema.get("description", "")) for field, schema in model["properties"].items()
    ]
    summary = model["description"].splitlines()[0]
    return f"## {name}\n\n{summary}\n\n{markdown_table(('field', 'values', 'meaning'), rows)}\n"


if __name__ == "__main__":
    sys.exit(main())
