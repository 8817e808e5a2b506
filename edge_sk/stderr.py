"""Capture what exporters write to stderr, and show it when they fail."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

from edge_sk.errors import InputError

_shown = False


@contextlib.contextmanager
def capture_stderr() -> Iterator[None]:
    """Capture what Python and C++ write to stderr, and show it if the block fails or is interrupted.

    Nothing is shown before an :class:`~edge_sk.errors.InputError`, which says what is wrong. A crash of the process
    leaves the text in ``edge_sk_*.log`` in the folder for temporary files. Numerical warnings are not captured: an
    overflow of half precision concerns the user. Under :func:`show_stderr` nothing is captured.
    """
    if _shown:
        yield
        return
    sys.stderr.flush()
    with tempfile.NamedTemporaryFile("w+", prefix="edge_sk_", suffix=".log", delete=False, errors="replace") as log:
        terminal = os.dup(2)
        failed = False
        caught: list[warnings.WarningMessage] = []
        try:
            os.dup2(log.fileno(), 2)  # C++ does not write through sys.stderr
            with contextlib.redirect_stderr(log), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                yield
        except InputError:
            raise
        except BaseException:
            failed = True
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            log.seek(0)
            text = log.read()
            log.close()
            os.unlink(log.name)  # Windows does not remove open files
            if failed:
                lines = (warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in caught)
                sys.stderr.write(text + "".join(lines))
    for warning in caught:
        if issubclass(warning.category, RuntimeWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextlib.contextmanager
def show_stderr(wanted: bool) -> Iterator[None]:
    """Let :func:`capture_stderr` capture nothing, if wanted."""
    global _shown
    before, _shown = _shown, wanted
    try:
        yield
    finally:
        _shown = before
