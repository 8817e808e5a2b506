"""Read weights from a run folder or a file, with how their images were prepared, and load them into a network."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_sk.errors import InputError, short
from edge_sk.files import atomic_write
from edge_sk.models._folders import CONFIG, WEIGHTS, ImageFields, local, read_config
from edge_sk.models._registry import todays_name
from edge_sk.reading import validated

_logger = logging.getLogger(__name__)
# SHA-256 of the tensors, in the metadata of the file that holds them: both are written at once.
DIGEST = "edge_sk.sha256"
# What is known of weights without a config.json: image fields, input size, labels.
NOTHING: tuple[dict[str, Any], None, None] = ({}, None, None)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors by name, and what is known of them.

    Args:
        source: Where they were read.
        state: The tensors.
        images: Those of :class:`ImageFields` that are known.
        input_size: ``(C, H, W)`` of the images.
        labels: Names of the classes.
    """

    source: str
    state: dict[str, Tensor]
    images: dict[str, Any]
    input_size: tuple[int, int, int] | None = None
    labels: list[str] | None = None

    def num_classes(self, model: Any) -> int | None:
        """How many classes the tensors of the model's classifier have."""
        heads = _heads(model)
        return next((len(value) for name, value in self.state.items() if name.startswith(heads) and value.ndim), None)

    def fit(self, model: Any) -> bool:
        """Whether the names are those of a network; the classifier does not count where the network has none."""
        return set(self._needed(model)) == set(model.state_dict())

    def _needed(self, model: Any) -> dict[str, Tensor]:
        """The tensors without the classifier, for a network without classes."""
        unused = () if model.default_cfg["num_classes"] else _heads(model)
        # Old files, torchvision's ResNets among them, have no counters of batches; torch itself does without, too.
        counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
        return counters | {name: value for name, value in self.state.items() if not name.startswith(unused)}

    def load(self, model: Any, *, network: str = "this network", new_classes: bool = True) -> None:
        """Load the tensors into a network, and the image fields into its ``default_cfg``.

        A classifier of another number of classes keeps its fresh weights if there may be ``new_classes``; messages say
        ``network``.

        Raises:
            InputError: Names, shapes or kinds of numbers differ anywhere else, or values are not finite.
        """
        own, state, heads = model.state_dict(), self._needed(model), _heads(model) if new_classes else ()
        if any(name.endswith("fake_quant_enabled") for name in state.keys() - own):
            raise InputError(
                f"{self.source} was trained with quantization.qat=true: its folded weights are those of no "
                f"other network; give the run that it started from"
            )
        if set(state) != set(own):
            state = _from_timm_names(state)
        for name, tensor in state.items():
            if flaw := _flaw(tensor, own.get(name)):
                raise InputError(f"the weights of {self.source} cannot be used: {name} {flaw}; save finite floats")
        given, wanted = ({name: str(tuple(t.shape)) for name, t in tensors.items()} for tensors in (state, own))
        other = [name for name in wanted | given if given.get(name) != wanted.get(name)]
        fresh = [name for name in other if name in given and name in wanted and name.startswith(heads)]
        wrong = [
            f"{name} is {given.get(name, 'missing')} there and {wanted.get(name, 'missing')} here"
            for name in other
            if name not in fresh
        ]
        for key in ("mean", "std"):
            values, own_values = self.images.get(key, ()), model.default_cfg.get(key, ())
            if len(values) not in (0, len(own_values), model.default_cfg["input_size"][0]):
                wrong += [f"{key} is {values} there and {own_values} here"]
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
        if self.labels and not fresh and len(self.labels) == model.default_cfg["num_classes"]:
            model.default_cfg["label_names"] = self.labels


def _flaw(tensor: Tensor, own: Tensor | None) -> str | None:
    """Why a tensor's values cannot be those of a network's ``own`` tensor of the same shape."""
    kinds = {"nested": tensor.is_nested, "quantized": tensor.is_quantized, "on the meta device": tensor.is_meta}
    kinds["sparse"] = tensor.layout is not torch.strided
    if any(kinds.values()) or own is None or own.shape != tensor.shape:
        return next((f"is {kind}" for kind, applies in kinds.items() if applies), None)
    if not (torch.can_cast(tensor.dtype, own.dtype) and torch.can_cast(own.dtype, tensor.dtype)):
        return f"has the type {tensor.dtype}, not {own.dtype}"
    return None if torch.isfinite(tensor.to(own.dtype)).all() else "is not finite (nan or inf)"


def _heads(model: Any) -> tuple[str, ...]:
    """What names in the classifier begin with; networks trained by distillation have several."""
    heads = model.default_cfg.get("classifier") or ()
    return tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))


def read(source: str | Path) -> Weights:
    """Read a folder, a ``.safetensors`` file, or a ``.pt``/``.pth`` file (without executing anything in it).

    A folder is a run's or one that timm saved; ``local-dir:`` may stand before it, and ``hf-hub:USER/NAME`` is
    downloaded. A ``config.json`` in the folder or beside the ``.safetensors`` file says how images were prepared.

    Raises:
        InputError: There is none, or it is damaged or holds no state dict.
    """
    path = Path(local(str(source)))
    if os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        path = next((path / name for name in WEIGHTS if (path / name).is_file()), path / WEIGHTS[0])
    if not os.path.isfile(path):
        raise InputError(
            f"no weights at {path}; give a run folder, one that timm saved, a .safetensors or .pt file, timm:NAME.TAG, "
            "torchvision:NAME.WEIGHTS or hf-hub:USER/NAME"
        )
    has_config = path.suffix == ".safetensors" or path.name in WEIGHTS
    about = _from_config(path.with_name(CONFIG)) if has_config else NOTHING
    return Weights(str(source), _from_file(path), *about)


def _from_config(path: Path) -> tuple[dict[str, Any], tuple[int, int, int] | None, list[str] | None]:
    """Image fields, input size and labels of a run's ``config.json``, or of one that timm saved."""
    if not path.exists():
        return NOTHING
    try:
        saved = read_config(path.parent)
        if saved.arch is not None:
            name, today = saved.arch, todays_name(saved.arch, saved.edge_sk_version)
            if name != today:
                _logger.warning("%s: version 0.1 trained these weights as %s, today %s", path.parent, name, today)
        images = saved.model_dump(include={*ImageFields.model_fields}, exclude_none=True)
        return images, saved.input_size, saved.labels
    except InputError as error:
        raise InputError(
            f"{path} is damaged ({error}): it must say how the images of the weights beside it were normalised; "
            "copy it again, or move the weights away from it"
        ) from None


def image_fields(config: Any) -> dict[str, Any]:
    """Those of :class:`ImageFields` that a mapping gives; an ``InputError`` where one is wrong."""
    return validated(ImageFields, config, "preprocessing").model_dump(exclude_none=True)


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a ``.safetensors`` file, with the digest that :func:`read` verifies."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # Not save_file: it reports a full disk as its own error type instead of an OSError.
    content = save(tensors, {DIGEST: digest(tensors)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors, given = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # safetensors' own type, and others for types of numbers that torch lacks
        raise InputError(
            f"{path} is not a whole safetensors file ({short(error)}); copy it again, or --resume the run"
        ) from error
    if given.get(DIGEST, found := digest(tensors)) != found:
        raise InputError(f"{path} is damaged: its tensors do not match its digest; copy it again, or --resume the run")
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of tensors on the CPU."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return found.hexdigest()


def _from_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
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
