"""Tables and text in Markdown."""

from __future__ import annotations

from edge_sk.markdown import code, escape, table


def test_a_table_aligns_columns_and_keeps_cells_in_their_column() -> None:
    text = table(["network", "params", "note"], [["a|b", "1", "two\nlines"], ["`c|d`", "2", ""]], "lr")
    assert text.split("\n") == [
        "| network | params | note |",
        "|---|---:|---|",
        r"| a\|b | 1 | two lines |",
        r"| `c\|d` | 2 |  |",
    ]
    assert table(["a"], []) == "| a |\n|---|"


def test_text_is_no_markup() -> None:
    assert escape("<b> *x* [y](z) | `q`\n@me #1 # a\\_") == (
        "&lt;b&gt; &#42;x&#42; &#91;y&#93;(z) &#124; &#96;q&#96; &#64;me &#35;1 # a&#92;&#95;"
    )
    assert code("a `b`\nc") == "`a 'b' c`"
