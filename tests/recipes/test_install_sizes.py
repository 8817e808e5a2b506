"""The sizes in docs/install.md."""

from __future__ import annotations

import tomllib

from edge_sk.reading import read_json
from recipes.install_sizes import MARKS, PAGE, RECORD, ROOT, markdown


def test_the_page_has_the_sizes_of_the_record() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(MARKS[0])[2].partition(MARKS[1])[0] == markdown(read_json(RECORD))


def test_the_page_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert all(f"`edge-sk[{name}]`" in PAGE.read_text(encoding="utf-8") for name in extras)
