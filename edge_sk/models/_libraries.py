"""Build networks of timm and torchvision by name, and download their pretrained weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from edge_sk.errors import InputError, short, shown
from edge_sk.models._entry import DEFAULT_CFG
from edge_sk.models._folders import distinct
from edge_sk.models._registry import PREFIXES, did_you_mean
from edge_sk.models._weights import Weights, image_fields, read
from edge_sk.running import first_line


def create(name: str, num_classes: int | None, in_chans: int, options: dict[str, Any]) -> Any:
    """Build ``timm:NAME`` or ``torchvision:NAME``, with ``default_cfg`` in timm's form.

    ``num_classes`` of ``None`` is what the library's weights have; ``options`` are passed to the library.

    Raises:
        InputError: An unknown name (the nearest are suggested), or what the library refuses.
    """
    for key, value in options.items():
        if isinstance(value, int | float) and not abs(value) <= 10_000:
            raise InputError(f"{name}: {key}={shown(value)} is out of range: numbers go from -10000 to 10000")
    library, _, plain = name.partition(":")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return (_create_timm if library == "timm" else _create_torchvision)(plain, in_chans, classes, options)
    except InputError:
        raise
    except Exception as error:  # by many authors, who check their options in as many ways; and what a download raises
        given = short(", ".join(f"{key}={shown(value)}" for key, value in options.items()))
        what = "downloaded or built" if options.keys() & {"pretrained", "weights"} else "built"
        what += f" with {given}" if options else ""
        raise InputError(f"{name} cannot be {what}: {first_line(error)}; see {library}'s documentation") from error


def _create_timm(name: str, in_chans: int, classes: dict[str, int], options: dict[str, Any]) -> Any:
    import timm

    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    model: Any = timm.create_model(name, in_chans=in_chans, **classes, **options)
    # timm leaves in both what its weights were trained with.
    size = (in_chans, *model.default_cfg["input_size"][1:])
    model.default_cfg = model.pretrained_cfg = model.default_cfg | classes | {"input_size": size}
    return model


def _create_torchvision(name: str, in_chans: int, classes: dict[str, int], options: dict[str, Any]) -> Any:
    import torchvision

    maps = torchvision.models.list_models(module=torchvision.models.segmentation)
    known = torchvision.models.list_models(module=torchvision.models) + maps
    if name not in known:
        raise InputError(f"torchvision has no model for classes or maps {name!r}{did_you_mean(name, known)}")
    if classes.get("num_classes") == 0:
        raise InputError(f"torchvision:{name} has no form without classes; timm's models take num_classes=0")
    if in_chans != 3:
        raise InputError(f"torchvision:{name} reads 3 channels, not {in_chans}; timm's models take in_chans")
    cfg = (
        DEFAULT_CFG | {"architecture": f"torchvision:{name}"} | ({"num_classes": 21} if name in maps else {}) | classes
    )
    if name in maps:
        options = {"weights_backbone": None} | options  # no download that nobody asked for
    if options.get("weights") is not None:
        weights: Any = torchvision.models.get_model_weights(name)
        try:
            transform = weights.verify(options["weights"]).transforms()
        except (KeyError, TypeError):
            given, known = shown(options["weights"]), ", ".join(weights.__members__)
            raise InputError(f"torchvision:{name} has no weights {given}; it has {known}") from None
        crop = getattr(transform, "crop_size", transform.resize_size)[0]
        cfg |= {
            "mean": tuple(transform.mean),
            "std": tuple(transform.std),
            "crop_pct": crop / transform.resize_size[0],
            "interpolation": transform.interpolation.value,
            "input_size": (3, crop, crop),
            "label_names": distinct(weights.verify(options["weights"]).meta["categories"]),
        }
    elif name in ("googlenet", "inception_v3"):
        options = {"init_weights": True} | options  # without it they warn that their default will change
    model: Any = torchvision.models.get_model(name, **classes, **options)
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    model.default_cfg = cfg | {"classifier": linear[-1] if linear else None}
    return model


def weights(source: str) -> Weights:
    """Read weights, or download ``timm:NAME.TAG``, ``torchvision:NAME.WEIGHTS`` or ``hf-hub:USER/NAME``.

    Raises:
        InputError: No such weights, or the download fails.
    """
    if not source.startswith(PREFIXES):
        return read(source)
    name, options = source, {"pretrained": True}
    if source.startswith("torchvision:"):
        name, _, tag = source.partition(".")
        options = {"weights": tag or "DEFAULT"}
    model = create(name, None, 3, options)
    cfg, labels = model.default_cfg, model.default_cfg.get("label_names")
    if source.startswith("timm:") and labels is None:
        from timm.data import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset(cfg)
        labels = distinct(ImageNetInfo(subset).label_descriptions()) if subset else None  # type: ignore[arg-type]
    return Weights(source, model.state_dict(), image_fields(cfg), tuple(cfg["input_size"]), labels)
