"""What holds for every script: how it ends at Ctrl-C, and what it says of arguments that JSON cannot hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sk.errors import script

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("recipes", "deploy", "deploy/mac")
    for path in (ROOT / folder).glob("*.py")
    if "@script" in path.read_text(encoding="utf-8")
)
INTERRUPT = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) == 33


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("path", SCRIPTS)
def test_an_interrupt_while_torch_is_imported_prints_no_traceback(path: str, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(INTERRUPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, ROOT / path], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@script
def echo(argv: list[str] | None = None) -> int:
    """A script."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(argv)
    return 0


def test_arguments_that_are_not_utf8_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"runs/gr\xfcn")
    assert echo(["--output", name]) == 2
    monkeypatch.setattr(sys, "argv", ["echo.py", name * 1000])
    assert echo() == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith(r"error: '")
        assert line.endswith("cannot be written as utf-8: rename it")
        assert r"gr\udcfcn" in line
        assert len(line) < 300


def test_from_main_on_an_interrupt_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # as while a script imports torch
    try:
        assert script(lambda: signal.raise_signal(signal.SIGINT) or 0)() == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted\n"
