"""One run of a network under fvcore's trace, after which the network is as it was."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edge_sk import running
from edge_sk.errors import InputError
from edge_sk.profiling.cost import FeatureMap
from edge_sk.profiling.operators import set_handles


def _fvcore() -> Any:
    """Import ``fvcore.nn`` without torch's notice about a loss in it, which uses ``torch.jit.script``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
        import fvcore.nn
    return fvcore.nn


def trace(model: nn.Module, shape: tuple[int, ...]) -> tuple[Any, FeatureMap]:
    """Run the network once under fvcore's trace with handles that count everything at once.

    Returns:
        fvcore's analysis, whose counts are named ``"KIND OPERATOR"``, and the largest tensor written.

    Raises:
        InputError: The network does not run on the shape, or cannot be traced.
    """
    analysis_class = _fvcore().FlopCountAnalysis
    largest = [FeatureMap((0,), "")]
    image = _image(model, shape)
    with _restored(model), torch.no_grad():
        model.eval()
        try:
            # A trace must end in tensors: networks for segmentation or detection answer with a dictionary.
            model.register_forward_hook(lambda _module, _inputs, output: tuple(_tensors(output)))
            analysis = analysis_class(model, (image,)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            set_handles(analysis, largest)
            analysis.by_operator()
        except Exception as error:
            failure = error
        else:
            return analysis, largest[0]
    raise InputError(_why(model, shape, image, failure)) from failure


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Put back modes and hooks: fvcore leaves its hooks on the modules when a trace fails."""
    saved = [
        (module, module.training, list(module._forward_hooks), list(module._forward_pre_hooks))
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, training, hooks, pre_hooks in saved:
            module.training = training
            for registered, kept in ((module._forward_hooks, hooks), (module._forward_pre_hooks, pre_hooks)):
                for key in [key for key in registered if key not in kept]:
                    del registered[key]


def network_name(model: nn.Module) -> str:
    """Its architecture where it has one, otherwise its class."""
    return running.default_cfg(model).get("architecture") or type(model).__name__


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in running.leaves(output) if isinstance(leaf, Tensor)]


def _image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    reference = running.reference(model)
    if reference.is_meta:
        raise InputError(
            f"{network_name(model)} has no weights (device 'meta'), so it cannot be traced; create it on the cpu"
        )
    try:
        return torch.zeros(shape, dtype=reference.dtype, device=reference.device)
    except RuntimeError as error:
        raise InputError(f"input {_times(shape)} cannot be made: {running.first_line(error)}") from error


def _why(model: nn.Module, shape: tuple[int, ...], image: Tensor, failure: Exception) -> str:
    """Tell an input that does not fit from a network that cannot be traced, by running it without a trace."""
    with _restored(model), torch.no_grad():
        model.eval()
        try:
            model(image)
        except Exception as error:
            return (
                f"{network_name(model)} does not run on an input of {_times(shape)}: {running.first_line(error)}; "
                "try another input size"
            )
    return (
        f"{network_name(model)} cannot be traced, so it cannot be counted: {running.first_line(failure)}; "
        "profile a plain nn.Module that takes one tensor, not a scripted or compiled one"
    )


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
