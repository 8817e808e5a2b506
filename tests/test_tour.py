"""The notebook docs/tour.ipynb: its cells run, and the files compute what the networks do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"], "saved without outputs: run the notebook, then save it"
            exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    # The graft keeps the accuracy that the network had; every network becomes a file, and classifies as it.
    (plain,), (grafted,) = (re.findall(rf"^{name}: (\S+%)", printed, re.MULTILINE) for name in ("plain", "grafted"))
    assert plain == grafted
    assert len(list(tmp_path.glob("exports/tour/*.pte"))) == 3
    assert printed.count("same class in 100.0% of 360 images") == 3
    assert "10 units: 5 selecting, 5 merged" in printed
