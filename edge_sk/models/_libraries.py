"""Networks of timm and torchvision, by name."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from edge_sk.errors import InputError
from edge_sk.models import _weights
from edge_sk.models._entry import DEFAULT_CFG

PREFIXES = ("timm:", "torchvision:")


def create(name: str, num_classes: int, in_chans: int, options: dict[str, Any]) -> Any:
    """Build ``timm:NAME`` or ``torchvision:NAME``; options go to the library.

    Returns:
        The network, with ``default_cfg`` in timm's form.

    Raises:
        InputError: An unknown name (the nearest are suggested), or what the library refuses.
    """
    library, _, name = name.partition(":")
    return (_create_timm if library == "timm" else _create_torchvision)(name, num_classes, in_chans, options)


def _create_timm(name: str, num_classes: int, in_chans: int, options: dict[str, Any]) -> Any:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(f"timm has no model {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    try:
        model: Any = timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **options)
    except TypeError as error:
        raise InputError(f"timm:{name} does not take these options: {error}") from error
    except RuntimeError as error:
        raise InputError(f"timm:{name} cannot be built: {error}") from error  # for instance an unknown weight tag
    # timm leaves in both what its weights were trained with.
    given = {"num_classes": num_classes, "input_size": (in_chans, *model.default_cfg["input_size"][1:])}
    model.default_cfg = model.pretrained_cfg = model.default_cfg | given
    return model


def _create_torchvision(name: str, num_classes: int, in_chans: int, options: dict[str, Any]) -> Any:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"torchvision has no classification model {name!r}{hint}")
    if num_classes < 1:
        raise InputError(f"torchvision:{name} has no form without classes; timm's models take num_classes=0")
    if in_chans != 3:
        raise InputError(f"torchvision:{name} reads 3 channels, not {in_chans}; timm's models take in_chans")
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": True} | options  # without it they warn that their default will change
    try:
        model: Any = torchvision.models.get_model(name, num_classes=num_classes, **options)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"torchvision:{name} does not take these options: {error}") from error
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    cfg = DEFAULT_CFG | {"architecture": f"torchvision:{name}", "num_classes": num_classes}
    if options.get("weights") is not None:
        cfg |= _weights.torchvision_fields(torchvision.models.get_model_weights(name).verify(options["weights"]))
    model.default_cfg = cfg | {"classifier": linear[-1] if linear else None}
    return model
