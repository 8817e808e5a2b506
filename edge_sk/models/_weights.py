"""Read weights from a run folder or a file, with how their images were prepared, and load them into a network."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_sk.errors import InputError

_logger = logging.getLogger(__name__)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


# Fields of ``default_cfg`` that belong to the weights, not to the architecture.
IMAGE_FIELDS = {"mean": _numbers, "std": _numbers, "crop_pct": float, "interpolation": str}


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors by name, where they were read, and those of :data:`IMAGE_FIELDS` that are known of them."""

    source: str
    state: dict[str, Tensor]
    images: dict[str, Any]

    def fit(self, model: Any) -> bool:
        """Whether the names are those of a network; the classifier does not count where the network has none."""
        return set(self._needed(model)) == set(model.state_dict())

    def _needed(self, model: Any) -> dict[str, Tensor]:
        """The tensors without the classifier, for a network without classes."""
        unused = () if model.default_cfg["num_classes"] else _heads(model)
        return {name: value for name, value in self.state.items() if not name.startswith(unused)}

    def load(self, model: Any, *, network: str = "this network", new_classes: bool = True) -> None:
        """Load the tensors into a network, and the image fields into its ``default_cfg``.

        A classifier of another number of classes keeps its fresh weights if there may be ``new_classes``; messages say
        ``network``.

        Raises:
            InputError: Names or shapes differ anywhere else.
        """
        own, state, heads = model.state_dict(), self._needed(model), _heads(model) if new_classes else ()
        if set(state) != set(own):
            state = _from_timm_names(state)
        given, wanted = ({name: str(tuple(t.shape)) for name, t in tensors.items()} for tensors in (state, own))
        other = [name for name in wanted | given if given.get(name) != wanted.get(name)]
        fresh = [name for name in other if name in given and name in wanted and name.startswith(heads)]
        wrong = [
            f"{name} is {given.get(name, 'missing')} there and {wanted.get(name, 'missing')} here"
            for name in other
            if name not in fresh
        ]
        if wrong:
            more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise InputError(f"{self.source} does not hold the weights of {network}: {', '.join(wrong[:3])}{more}")
        if fresh:
            _logger.info("%s has another number of classes: %s start fresh", self.source, ", ".join(fresh))
        if "mean" not in self.images:
            _logger.info(
                "%s does not say how its images were normalised: the network's own mean and std stay", self.source
            )
        model.load_state_dict(state | {name: own[name] for name in fresh})
        model.default_cfg.update(self.images)


def _heads(model: Any) -> tuple[str, ...]:
    """What names in the classifier begin with; networks trained by distillation have several."""
    heads = model.default_cfg.get("classifier") or ()
    return tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))


def read(source: str | Path) -> Weights:
    """Read a run folder, a ``.safetensors`` file, or a ``.pt``/``.pth`` file (without executing anything in it).

    Image fields come from a ``config.json`` in the folder or beside the ``.safetensors`` file.

    Raises:
        InputError: There is none, or it is damaged or holds no state dict.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise InputError(
            f"no weights at {path}; give a run folder, a .safetensors or .pt file, timm:NAME.TAG or "
            "torchvision:NAME.WEIGHTS"
        )
    images = _from_config(path.with_name("config.json")) if path.suffix == ".safetensors" else {}
    return Weights(str(source), _from_file(path), images)


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
    for pattern, ours in _TIMM_NAMES:
        state = {re.sub(pattern, ours, name): value for name, value in state.items()}
    return state
