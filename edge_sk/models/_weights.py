"""Starting weights, and how their images were prepared: from timm, torchvision, a run folder or a file."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sk.errors import InputError
from edge_sk.running import first_line

_logger = logging.getLogger(__name__)

# Dotted path of the classifier, as timm's ``default_cfg`` gives it: several in networks trained by distillation.
Classifier = str | Sequence[str] | None


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


# Fields of ``default_cfg`` that belong to the weights, not to the architecture.
IMAGE_FIELDS = {"mean": _numbers, "std": _numbers, "crop_pct": float, "interpolation": str}


def read(source: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state dict, and how the images were prepared that it was trained on.

    Args:
        source: ``timm:NAME.TAG`` or ``torchvision:NAME.WEIGHTS`` (both download), a run folder, a ``.safetensors``
            file, or a ``.pt``/``.pth`` file (read without executing anything in it).

    Returns:
        The tensors by name; and those of :data:`IMAGE_FIELDS` that timm, torchvision or a ``config.json`` in the folder
        or beside the ``.safetensors`` file gives. A ``.pt`` file gives none.

    Raises:
        InputError: No such source, or a file that is damaged or holds no state dict.
    """
    text = str(source)
    if text.startswith("timm:"):
        state, fields = _from_timm(text.removeprefix("timm:"))
    elif text.startswith("torchvision:"):
        state, fields = _from_torchvision(text.removeprefix("torchvision:"))
    else:
        state, fields = _from_path(Path(source))
    if "mean" not in fields:
        _logger.info("%s does not say how its images were normalised: the network's own mean and std stay", source)
    return state, fields


def _from_path(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise InputError(
            f"no weights at {path}; give a run folder, a .safetensors or .pt file, timm:NAME.TAG or "
            "torchvision:NAME.WEIGHTS"
        )
    return _from_file(path), _from_config(path.with_name("config.json")) if path.suffix == ".safetensors" else {}


def _from_config(path: Path) -> dict[str, Any]:
    """The image fields of a run's ``config.json``, or of one that timm saved; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return image_fields(config.get("pretrained_cfg", config))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}): it must say how the images of the weights beside it were normalised; "
            "copy it again, or move the weights away from it"
        ) from None


def image_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Those of :data:`IMAGE_FIELDS` that a mapping gives."""
    return {key: convert(config[key]) for key, convert in IMAGE_FIELDS.items() if config.get(key) is not None}


def _from_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises a dozen types for a damaged or unsafe file; all mean that it cannot be used.
        raise InputError(
            f"{path} cannot be read as weights ({type(error).__name__}); it is damaged, or holds more than tensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path} holds no state dict (a mapping from names to tensors)")
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def _from_timm(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import timm

    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}; see timm.list_models(pretrained=True)")
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except Exception as error:
        # A download fails in as many ways as a network does.
        raise InputError(f"the weights of timm:{name} could not be had: {first_line(error)}") from error
    return model.state_dict(), image_fields(model.pretrained_cfg)


def _from_torchvision(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import torchvision

    arch, _, tag = name.partition(".")
    if arch not in torchvision.models.list_models():
        raise InputError(f"torchvision has no model {arch!r}; see torchvision.models.list_models()")
    weights = torchvision.models.get_model_weights(arch)
    if tag and tag not in weights.__members__:
        raise InputError(f"torchvision's {arch} has no weights {tag!r}; it has {', '.join(weights.__members__)}")
    try:
        state = torchvision.models.get_model(arch, weights=tag or "DEFAULT").state_dict()
    except Exception as error:
        raise InputError(f"the weights of torchvision:{name} could not be had: {first_line(error)}") from error
    return state, torchvision_fields(weights[tag or "DEFAULT"])


def torchvision_fields(weights: Any) -> dict[str, Any]:
    """The image fields of a member of torchvision's weight enums."""
    transform = weights.transforms()
    if not hasattr(transform, "crop_size"):
        return {}  # of detection or segmentation
    return image_fields(
        {
            "mean": transform.mean,
            "std": transform.std,
            "crop_pct": transform.crop_size[0] / transform.resize_size[0],
            "interpolation": transform.interpolation.value,
        }
    )


# timm's selective-kernel ResNets (skresnext50_32x4d, ...): names of the unit, and of what stands beside it in a block.
_TIMM_NAMES = (
    (r"\.conv2\.paths\.(\d+)\.", r".conv2.branches.\1."),
    (r"\.conv2\.attn\.fc_reduce\.", ".conv2.gate.reduce."),
    (r"\.conv2\.attn\.fc_select\.", ".conv2.gate.expand."),
    (r"\.conv2\.attn\.bn\.", ".conv2.gate.bn."),
    (r"\.conv([13])\.conv\.", r".conv\1."),
    (r"\.conv([13])\.bn\.", r".bn\1."),
)


def _from_timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not any(".conv2.attn.fc_select." in name for name in state):
        return state

    def translate(name: str) -> str:
        for pattern, ours in _TIMM_NAMES:
            name = re.sub(pattern, ours, name)
        return name

    return {translate(name): value for name, value in state.items()}


def fits(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether the names agree."""
    return set(model.state_dict()) == set(state)


def without(state: dict[str, Tensor], classifier: Classifier) -> dict[str, Tensor]:
    """The state without its classifier, for a network that has none."""
    return {name: value for name, value in state.items() if not _belongs(name, classifier)}


def _belongs(name: str, classifier: Classifier) -> bool:
    heads = (classifier,) if isinstance(classifier, str) else classifier or ()
    return name.startswith(tuple(f"{head}." for head in heads))


def load(model: nn.Module, state: dict[str, Tensor], *, source: object, classifier: Classifier) -> None:
    """Load ``state`` into ``model``; a classifier of another number of classes keeps its fresh weights.

    Raises:
        InputError: Names or shapes differ anywhere else.
    """
    own = model.state_dict()
    if not fits(model, state):
        state = _from_timm_names(state)
    missing, foreign = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    head = [name for name in other if _belongs(name, classifier)]
    wrong = [name for name in other if name not in head]
    shapes = [f"{name} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} here" for name in wrong]
    if missing or foreign:
        every = [f"lacks {name}" for name in missing] + [f"has {name}" for name in foreign] + shapes
        raise InputError(
            f"the weights of {source} are of another network: {len(missing)} tensors missing and {len(foreign)} "
            f"unknown ({', '.join(every)})"
        )
    if shapes:
        raise InputError(f"the weights of {source} do not fit: {', '.join(shapes)}")
    if head:
        _logger.info("%s has another number of classes: %s starts fresh", source, classifier)
    model.load_state_dict({name: own[name] if name in head else state[name] for name in own})
