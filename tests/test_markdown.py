"""Markdown tables: what any cell may hold, and what is refused."""

from __future__ import annotations

import pytest

from edge_sk.markdown import markdown_table


def test_columns_are_aligned() -> None:
    assert markdown_table(["a", "b", "c"], [("x", 1, "")], "lrc") == "| a | b | c |\n|---|---:|:---:|\n| x | 1 |  |"
    assert markdown_table(["a"], []) == "| a |\n|---|"


@pytest.mark.parametrize(
    ("cell", "printed"),
    [("a|b||", r"a\|b\|\|"), ("a\nb\r\nc", "a b c"), (r"a\|b", r"a\|b"), (r"a\\|b", r"a\\\|b"), ("`*x*`", "`*x*`")],
)
def test_a_cell_stays_one_cell(cell: str, printed: str) -> None:
    assert markdown_table([cell], [[cell]]) == f"| {printed} |\n|---|\n| {printed} |"


@pytest.mark.parametrize(("row", "align"), [((1,), ""), ((1, 2, 3), ""), ((1, 2), "l")])
def test_columns_must_match(row: tuple[int, ...], align: str) -> None:
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        markdown_table(["a", "b"], [row], align)
