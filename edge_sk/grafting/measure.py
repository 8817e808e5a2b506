"""Run a network before and after: where its sites are, and how much its output differs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from edge_sk.errors import InputError
from edge_sk.grafting.site import Site
from edge_sk.selective_kernel import SelectiveKernel

# Relative difference of a network's outputs up to which it counts as kept. In float64 rounding stays orders of
# magnitude below; a network that uses a site in a way nobody saw lies far above.
TOLERANCE = 1e-3
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def random_images(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """Two images of standard normal noise, always the same, on the model's device and in its type."""
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return noise.to(_reference(model))


def photographs(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """scikit-learn's two sample photographs, resized and normalised as the model's ``default_cfg`` says."""
    from sklearn.datasets import load_sample_images

    channels, height, width = shape
    cfg = config(model)
    pictures = torch.stack([torch.tensor(image) for image in load_sample_images().images])  # (2, 427, 640, 3)
    images = pictures.movedim(-1, 1).float() / 255
    side = min(images.shape[2:])
    left = (images.shape[3] - side) // 2
    images = F.interpolate(images[..., left : left + side], (height, width), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(cfg.get(key, default)).view(1, -1, 1, 1) for key, default in _NORMALISATION)
    if len(mean.flatten()) in (1, 3):
        images = (images - mean) / std
    if channels != 3:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    return images.to(_reference(model))


_NORMALISATION = (("mean", _IMAGENET_MEAN), ("std", _IMAGENET_STD))


def config(model: nn.Module) -> dict[str, Any]:
    """How to feed the model, as far as it says (timm's ``pretrained_cfg``, ``default_cfg``)."""
    for name in ("pretrained_cfg", "default_cfg"):
        cfg = getattr(model, name, None)
        if isinstance(cfg, dict) and cfg:
            return cfg
    return {}


def _reference(model: nn.Module) -> Tensor:
    return next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Every floating-point tensor that the model returns.

    Raises:
        InputError: The model does not run on these images.
    """
    try:
        returned = model(images)
    except Exception as error:
        size = "x".join(map(str, images.shape))
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{type(model).__name__} does not run on an input of {size}: {reason}; pass input_size=(C, H, W), or "
            "images= (a batch that it takes)"
        ) from error
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        returned = list(vars(returned).values())
    return [leaf for leaf in _pytree.tree_leaves(returned) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest change of any output value, relative to the largest output value; ``nan`` if an output is not finite."""
    pairs = [(a.double(), b.double()) for a, b in zip(before, after, strict=True) if a.numel()]
    if not all(bool(torch.isfinite(tensor).all()) for pair in pairs for tensor in pair):
        return math.nan
    change = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    size = max((float(a.abs().max()) for a, _ in pairs), default=0.0)
    return change / size if size else change


@dataclasses.dataclass
class Observation:
    """What a run of the model showed about one module."""

    calls: int = 0
    resolution: tuple[int, int] | None = None
    given: Any = None
    returned: Any = None


def observe(model: nn.Module, images: Tensor, modules: Sequence[nn.Module]) -> dict[int, Observation]:
    """Run the model and note what it does with some of its modules.

    Returns:
        The observations by ``id`` of the module.
    """
    seen = {id(module): Observation() for module in modules}
    handles: list[RemovableHandle] = []

    def note(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        observation = seen[id(module)]
        observation.calls += 1
        observation.given, observation.returned = (args[0] if args else None), result
        if isinstance(result, Tensor) and result.ndim == 4:
            observation.resolution = (int(result.shape[2]), int(result.shape[3]))

    try:
        handles += [module.register_forward_hook(note) for module in {id(m): m for m in modules}.values()]
        outputs(model, images)
        return seen
    finally:
        for handle in handles:
            handle.remove()


def site_differences(
    model: nn.Module, images: Tensor, units: Sequence[tuple[Site, SelectiveKernel]]
) -> tuple[list[Tensor], list[float]]:
    """Run a grafted model, and at every unit compare its output with what the site would have given for the same input.

    Returns:
        The model's outputs; and one relative difference per unit, ``nan`` for a unit that did not run.
    """
    found: dict[int, float] = {}
    handles = []
    for site, unit in units:

        def compare(module: nn.Module, args: tuple[Any, ...], result: Tensor, site: Site = site) -> None:
            found[id(module)] = difference([_original(site, module, args[0])], [result])

        handles.append(unit.register_forward_hook(compare))
    try:
        results = outputs(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return results, [found.get(id(unit), float("nan")) for _, unit in units]


def _original(site: Site, unit: nn.Module, x: Tensor) -> Tensor:
    """What stood where the unit stands: convolution, normalisation, and the activation if the unit has it."""
    norm = site.norm_module
    x = F.batch_norm(site.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    assert isinstance(unit, SelectiveKernel)
    return unit.branches[0].get_submodule("act")(x)
