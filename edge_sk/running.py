"""Run a network and leave it as it was; make images for it; compare its outputs."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree

from edge_sk.errors import InputError, short, shown, whole_number

DEFAULT_INPUT = (3, 224, 224)
# Values in a batch of images, far above what is useful: 3x4096x4096 has fewer.
MOST_VALUES = 2**26
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode without gradients; afterwards every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def copied(model: nn.Module) -> nn.Module:
    """Copy a model, with what it has cached of earlier runs detached from their gradients.

    Raises:
        InputError: Something in it cannot be copied.
    """
    # timm's attention biases and torch.nn.utils.weight_norm keep computed tensors, which deepcopy refuses.
    kept = [leaf for module in model.modules() for leaf in _pytree.tree_leaves(list(vars(module).values()))]
    computed = {id(leaf): leaf for leaf in kept if isinstance(leaf, Tensor) and not leaf.is_leaf}
    try:
        return copy.deepcopy(model, {key: tensor.detach().clone() for key, tensor in computed.items()})
    except Exception as error:  # Whatever the model holds may refuse to be copied.
        raise InputError(
            f"{type(model).__name__} cannot be copied: {first_line(error)}; take out what copy.deepcopy refuses"
        ) from error


def check_network(model: Any, function: str, *, meta: bool = False) -> None:
    """An ``InputError`` for what is no network, or one whose tensors have no shape or (unless ``meta``) no values."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"{function} takes a Python module (nn.Module), got {type(model).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"{name} is lazy and has no shape yet: run the model once before you {function} it")
        if tensor.is_meta and not meta:
            raise InputError(f"{name} has no weights (meta device): load them before you {function} the model")


def default_cfg(model: nn.Module) -> dict[str, Any]:
    """How to feed the model, as far as it says (timm's ``pretrained_cfg``, else ``default_cfg``)."""
    for name in ("pretrained_cfg", "default_cfg"):
        cfg = getattr(model, name, None)
        if isinstance(cfg, dict) and cfg:
            return cfg
    return {}


def input_shape(model: nn.Module, size: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """Shape of a batch of images for the model, ``(N, C, H, W)``.

    Args:
        model: Its ``default_cfg`` fills in what ``size`` leaves open; without one, 3x224x224.
        size: ``(N, C, H, W)``, ``(C, H, W)`` for a batch of one, the side of a square image, or ``None``.

    Raises:
        InputError: ``size`` is none of these, or too large.
    """
    default = default_cfg(model).get("input_size") or DEFAULT_INPUT
    given = default if size is None else size
    try:
        given = tuple(given) if isinstance(given, Sequence) else (default[0], given, given)
        n, c, h, w = (whole_number("size", number) for number in ((1, *given) if len(given) == 3 else given))
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(
            f"input_size={shown(given)} is not (C, H, W), (N, C, H, W) or the side of a square image, in whole numbers "
            "of at least 1; for instance (3, 224, 224)"
        ) from error
    if n * c * h * w > MOST_VALUES:
        raise InputError(f"input_size={shown(given)} has more than {MOST_VALUES} values: give a smaller size")
    return n, c, h, w


def reference(model: nn.Module) -> Tensor:
    """A tensor of the device and floating-point type that the model computes in."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))


def random_images(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of shape ``(N, C, H, W)``, always the same, on the model's device and in its type."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(reference(model))


def photographs(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """scikit-learn's two sample photographs as ``(2, C, H, W)``, prepared as the model wants them.

    Mean and standard deviation are those of its ``default_cfg``; ``shape`` is ``(C, H, W)``.
    """
    from sklearn.datasets import load_sample_images

    channels, height, width = shape
    cfg = default_cfg(model)
    pictures = torch.stack([torch.tensor(image) for image in load_sample_images().images])  # (2, 427, 640, 3)
    images = pictures.movedim(-1, 1).float() / 255
    side = min(images.shape[2:])
    left = (images.shape[3] - side) // 2
    images = F.interpolate(images[..., left : left + side], (height, width), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(cfg.get(key, default)).view(1, -1, 1, 1) for key, default in IMAGENET.items())
    if len(mean.flatten()) in (1, 3):
        images = (images - mean) / std
    if channels != 3:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    return images.to(reference(model))


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Every floating-point tensor that the model returns.

    Raises:
        InputError: The model does not run on these images.
    """
    try:
        returned = model(images)
    except Exception as error:
        size = "x".join(map(str, images.shape))
        raise InputError(
            f"{type(model).__name__} does not run on an input of {size}: {first_line(error)}; pass "
            "input_size=(C, H, W), or images= (a batch that it takes)"
        ) from error
    return [leaf for leaf in leaves(returned) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def parts(value: Any) -> dict[Any, Any] | None:
    """The parts of a tuple, list, dictionary or data class, by index, key or name; ``None`` for any other value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return value
    # Tuples and lists, and what else torch.utils._pytree knows.
    flat = value if isinstance(value, list | tuple) else _pytree.tree_leaves(value)
    return None if len(flat) == 1 and flat[0] is value else dict(enumerate(flat))


def leaves(value: Any) -> list[Any]:
    """The values in a structure of tuples, lists, dictionaries and data classes."""
    inner = parts(value)
    return [value] if inner is None else [leaf for part in inner.values() for leaf in leaves(part)]


def named_tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in such a structure by their places, as ``"out"`` or ``"features_0"``; a tensor itself as ``""``."""
    inner = parts(value)
    if inner is None:
        return {name: value} if isinstance(value, Tensor) else {}
    found: dict[str, Tensor] = {}
    for key, part in inner.items():
        found |= named_tensors(part, f"{name}_{key}" if name else str(key))
    return found


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest change of any output value, relative to the largest output value; ``nan`` if an output is not finite."""
    pairs = [(a.double(), b.double()) for a, b in zip(before, after, strict=True) if a.numel()]
    if not all(bool(torch.isfinite(tensor).all()) for pair in pairs for tensor in pair):
        return math.nan
    change = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    size = max((float(a.abs().max()) for a, _ in pairs), default=0.0)
    return change / size if size else change


class Changed(Exception):
    """An output is not what it was; the message says what differs."""


# Share of whole numbers that rounding may tip: an argmax over a map decides between values that are nearly equal.
TIPPED = 1e-3


def compare(expected: Any, got: Any, what: str = "the output", *, tipped: float = TIPPED) -> float:
    """Compare an output with the expected one: structure, types, shapes, devices and values.

    Both may be any structure of tuples, lists, dictionaries and data classes. ``what`` names the output in messages;
    ``tipped`` is the share of a tensor's whole numbers that may differ.

    Returns:
        The largest difference of a floating-point value, relative to the largest value of its tensor (not of all
        outputs, as :func:`difference` has it).

    Raises:
        Changed: Anything else differs.
    """
    if isinstance(expected, Tensor) and isinstance(got, Tensor):
        return _compare_tensors(expected, got, what, tipped)
    if type(expected) is not type(got):
        raise Changed(f"{what} is {type(got).__name__}, not {type(expected).__name__}")
    inner, others = parts(expected), parts(got)
    if inner is not None and others is not None:
        if list(inner) != list(others):
            raise Changed(f"{what} has the parts {list(others)}, not {list(inner)}")
        differences = [compare(part, others[key], f"{what}[{key!r}]", tipped=tipped) for key, part in inner.items()]
        return max(differences, default=0.0)
    try:
        same = expected is got or bool(expected == got)
    except Exception:  # whatever the model returns
        same = False
    if not same:
        raise Changed(f"{what} holds a {type(expected).__name__} that is not equal to the first")
    return 0.0


def _compare_tensors(expected: Tensor, got: Tensor, what: str, tipped: float) -> float:
    for name in ("shape", "dtype", "device", "layout"):
        theirs, ours = getattr(expected, name), getattr(got, name)
        if theirs != ours:
            raise Changed(f"{what} has the {name} {ours}, not {theirs}")
    if not expected.numel():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        share = (expected != got).double().mean().item()
        if share > tipped:
            raise Changed(f"{share:.1%} of the whole numbers in {what} differ")
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = (tensor.detach().to("cpu", wide) for tensor in (expected, got))
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        raise Changed(f"{what} is not finite in other places")
    change, size = ((x[finite].abs().max().item() if finite.any() else 0.0) for x in (a - b, a))
    return change / size if size else change


def first_line(error: BaseException) -> str:
    """The first line of an error's message, in short; its type if it has none."""
    return short(next((line for line in str(error).splitlines() if line.strip()), type(error).__name__))
