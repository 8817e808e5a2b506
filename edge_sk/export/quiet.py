"""Hold back what exporters say to themselves on stderr, and show it when they fail."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

from edge_sk.errors import InputError

_loud = False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back all that is written to stderr, by Python and by C++, and show it if the block fails.

    An :class:`~edge_sk.errors.InputError` says itself what is wrong: nothing is shown before it. An interrupt shows
    what was held back. A crash of the process leaves it in ``edge_sk_*.log`` in the folder for temporary files.
    Numerical warnings pass (an overflow of half precision is the user's). Under :func:`loud` everything passes.
    """
    if _loud:
        yield
        return
    sys.stderr.flush()
    with tempfile.NamedTemporaryFile("w+", prefix="edge_sk_", suffix=".log", delete=False, errors="replace") as held:
        terminal = os.dup(2)
        said = False
        caught: list[warnings.WarningMessage] = []
        try:
            os.dup2(held.fileno(), 2)  # C++ does not write through sys.stderr
            with contextlib.redirect_stderr(held), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                yield
        except InputError:
            raise
        except BaseException:
            said = True
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            words = held.read()
            held.close()
            os.unlink(held.name)  # Windows does not remove open files
            if said:
                sys.stderr.write(words + "".join(map(_line, caught)))
    for warning in caught:
        if issubclass(warning.category, RuntimeWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _line(warning: warnings.WarningMessage) -> str:
    return warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno)


@contextlib.contextmanager
def loud(wanted: bool) -> Iterator[None]:
    """Let :func:`quiet` hold nothing back, if wanted."""
    global _loud
    before, _loud = _loud, wanted
    try:
        yield
    finally:
        _loud = before
