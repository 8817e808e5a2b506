"""The one exception that users see, and the wrapper that turns it into one line and an exit code."""

from __future__ import annotations

import errno
import functools
import numbers
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

Arguments = ParamSpec("Arguments")

# Ctrl-C ends a script that still imports torch at once; from its `main` on it is an exception again.
_is_script = Path(sys.argv[0]).absolute().parent.name in ("recipes", "deploy", "mac")
if _is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class InputError(ValueError):
    """An input cannot be used: one line of at most 600 characters names the value, what is allowed, and what to do."""

    def __init__(self, message: object) -> None:
        super().__init__(short(message, 600))


def short(value: object, limit: int = 200) -> str:
    """A value as one line of text, at most ``limit`` characters: what is too long loses its middle."""
    text = " ".join(str(value).split())
    # What a terminal cannot print, lone surrogates and control characters, is escaped.
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def shown(value: object) -> str:
    """A value as Python writes it, in at most 60 characters."""
    try:
        return short(repr(value), 60)
    except Exception:  # an integer of more than 4300 digits, or a class of the user's
        return f"a value of type {type(value).__name__}"


def whole_number(name: str, value: object, *, least: int = 1, most: int = 2**20) -> int:
    """Read an integer argument: Python's and numpy's integers, but no bool.

    Raises:
        InputError: It is something else, below ``least`` or above ``most``.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not least <= int(value) <= most:
        raise InputError(f"{name}={shown(value)} is not a whole number of at least {least} and at most {most}")
    return int(value)


def require(module: str, *, extra: str, needed_for: str) -> Any:
    """Import an optional dependency.

    Raises:
        InputError: It is not installed; the message says what it is ``needed_for``, and which extra installs it.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise InputError(f'{needed_for} needs {module} ({missing}): pip install "edge-sk[{extra}]"') from missing


def script(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """Make the ``main(argv)`` of a script print one line on stderr for bad input instead of a traceback.

    Exit codes: 2 for bad input, 1 for a failing disk or file, 130 for an interrupt.
    """

    @functools.wraps(main)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        given: Any = next(iter(args), None)
        try:
            # A disk takes a name that is not UTF-8, but our JSON cannot hold it.
            " ".join(sys.argv[1:] if given is None else given).encode()
            return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except UnicodeEncodeError as error:
            part = ascii(error.object[max(0, error.start - 40) : error.end + 40])
            print(f"error: {part} cannot be written as {error.encoding}: rename it", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader of our output ended (`| head`): nobody reads a message.
            sys.stderr.close()
            return 1
        except OSError as error:
            hint = "; free some space and run again" if error.errno == errno.ENOSPC else ""
            place = f": {error.filename}" if error.filename else ""
            print(f"error: {error.strerror or error}{place}{hint}", file=sys.stderr)
            return 1

    return wrapper
