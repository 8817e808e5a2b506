"""The one exception users see, and the wrapper that turns it into one line and an exit code."""

from __future__ import annotations

import errno
import functools
import numbers
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Main(Protocol):
    """The ``main`` of a script."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run with these arguments (``sys.argv`` when ``None``) and return the exit code."""
        ...


class InputError(ValueError):
    """What the user gave cannot be used: the message names the value, what is allowed, what to do."""


def whole_number(name: str, value: object, *, least: int = 1) -> int:
    """Read an integer argument: Python's and numpy's integers, but no bool.

    Raises:
        InputError: It is something else, or below ``least``.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value!r} is not a whole number of at least {least}")
    return int(value)


def require(module: str, *, extra: str, needed_for: str) -> Any:
    """Import an optional dependency.

    Args:
        module: Dotted module name.
        extra: The edge-sk extra that installs it.
        needed_for: What it is needed for, in words.

    Raises:
        InputError: It is not installed; the message names the extra.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise InputError(f'{needed_for} needs {module} ({missing}): pip install "edge-sk[{extra}]"') from missing


def script(main: Callable[[Sequence[str] | None], int]) -> Main:
    """Make ``main(argv)`` of a script answer bad input with one line on stderr instead of a traceback.

    Exit codes: 2 for bad input, 1 for a failing disk or file, 130 for an interrupt.
    """

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader of our output went away (`| head`): nothing to report to.
            sys.stderr.close()
            return 1
        except OSError as error:
            hint = "; free some space and run again" if error.errno == errno.ENOSPC else ""
            place = f": {error.filename}" if error.filename else ""
            print(f"error: {error.strerror or error}{place}{hint}", file=sys.stderr)
            return 1

    return wrapper
