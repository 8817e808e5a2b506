"""Stderr is held back while all goes well, and never lost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from edge_sk.errors import InputError
from edge_sk.stderr import capture_stderr, show_stderr


def _talk(error: BaseException | type[BaseException] | None = None) -> None:
    os.write(2, b"from C\n")
    print("from Python", file=sys.stderr)
    warnings.warn("a deprecation", DeprecationWarning, stacklevel=2)
    if error is not None:
        raise error


def test_silent_while_all_goes_well(capfd: pytest.CaptureFixture[str]) -> None:
    with capture_stderr(), capture_stderr():
        _talk()
    print("afterwards", file=sys.stderr)
    assert capfd.readouterr().err == "afterwards\n"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_shows_all_once(error: type[BaseException], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(error), capture_stderr(), capture_stderr():
        _talk(error)
    said = capfd.readouterr().err
    for part in ("from C\n", "from Python\n", "DeprecationWarning: a deprecation"):
        assert said.count(part) == 1


def test_one_line_stays_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError), capture_stderr():
        _talk(InputError("it says itself what is wrong"))
    assert capfd.readouterr().err == ""


def test_show_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with show_stderr(True), capture_stderr(), pytest.warns(DeprecationWarning, match="a deprecation"):
        _talk()
    assert capfd.readouterr().err == "from C\nfrom Python\n"
    with capture_stderr():
        _talk()
    assert capfd.readouterr().err == ""


def test_numerical_warnings_pass() -> None:
    with pytest.warns(RuntimeWarning, match="overflow"), capture_stderr():
        warnings.warn("overflow", RuntimeWarning, stacklevel=1)


def test_a_crash_leaves_what_was_said(tmp_path: Path) -> None:
    code = (
        "import os; from edge_sk.stderr import capture_stderr\n"
        "with capture_stderr(): os.write(2, b'last words'); os.abort()"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode < 0
    (left,) = tmp_path.glob("edge_sk_*.log")
    assert left.read_text() == "last words"


def test_the_log_is_closed_before_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to remove an open file, and its error would hide the real one."""
    made, files, remove = tempfile.NamedTemporaryFile, [], os.unlink
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda *args, **kw: files.append(made(*args, **kw)) or files[0])

    def unlink(path: str) -> None:
        if not files[0].closed:
            raise PermissionError(path)
        remove(path)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(RuntimeError, match="the real error"), capture_stderr():
        raise RuntimeError("the real error")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with capture_stderr():
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
