"""What a network says of itself: its name and the input it takes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edge_sk.errors import InputError

DEFAULT_INPUT = (1, 3, 224, 224)


def name(model: nn.Module) -> str:
    """Its architecture where it has one, otherwise its class."""
    cfg = getattr(model, "default_cfg", None)
    return (cfg.get("architecture") if isinstance(cfg, dict) else None) or type(model).__name__


def input_shape(model: nn.Module, size: int | Sequence[int] | None) -> tuple[int, ...]:
    """Shape of its input, batch included; ``size`` as :func:`edge_sk.profile` takes it.

    Raises:
        InputError: A bad shape.
    """
    default = tuple((getattr(model, "default_cfg", None) or {}).get("input_size", DEFAULT_INPUT[1:]))
    if size is None:
        size = (1, *default)
    elif isinstance(size, int):
        size = (1, default[0], size, size)
    shape = tuple(size)
    if not shape or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shape):
        raise InputError(
            f"input size {size!r} is not a shape of whole numbers of at least 1; "
            "give the side of a square image, or the whole shape such as (1, 3, 224, 224)"
        )
    return shape
