"""Markdown: what any cell of a table may hold, what is refused, text that is no markup."""

from __future__ import annotations

import pytest

from edge_sk.markdown import code, escape
from recipes.markdown_tables import markdown_table


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


def test_text_is_no_markup() -> None:
    assert escape("<b> *x* [y](z) | `q`\n@me #1 # a\\_") == (
        "&lt;b&gt; &#42;x&#42; &#91;y&#93;(z) &#124; &#96;q&#96; &#64;me &#35;1 # a&#92;&#95;"
    )
    assert code("a `b`\nc") == "`a 'b' c`"
