"""Names to networks."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import logging
import numbers
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from edge_sk import grafting, running
from edge_sk.errors import InputError, whole_number
from edge_sk.grafting import measure
from edge_sk.models import _weights, cifar, mobilenet, resnext, shufflenetv2
from edge_sk.models._entry import DEFAULT_CFG, Entry

_logger = logging.getLogger(__name__)

# Options of names with selective kernels, beside the plain network's; ShuffleNetV2's also have sk_units.
SK_OPTIONS = ("kernels", "reduction", "min_width", "select")
# Of timm's and torchvision's networks; kernels asks for the graft.
GRAFT_OPTIONS = (*SK_OPTIONS, "init")
# Families of timm and torchvision made for phones, by a part of their names.
MOBILE = ("mobilenet", "mobileone", "shufflenet", "mnasnet", "efficientnet_lite", "lcnet", "ghostnet", "fbnet")
MOBILE += ("tinynet", "hardcorenas")


@functools.cache
def entries() -> dict[str, Entry]:
    """The zoo, by name."""
    families = (shufflenetv2, mobilenet, resnext, cifar)
    zoo: dict[str, Entry] = {}
    for entry in (entry for family in families for entry in family.entries()):
        if entry.name in zoo:
            raise RuntimeError(f"two networks are named {entry.name}")
        zoo[entry.name] = entry
    return zoo


def list_models(pattern: str | Iterable[str] = "*", exclude_filters: str | Iterable[str] = ()) -> list[str]:
    """Names of the zoo, in natural order (``sknet26`` before ``sknet101``).

    Args:
        pattern: Shell-style pattern, or several; a name that matches one is listed. Empty: every name.
        exclude_filters: Pattern or patterns of names to leave out.

    Raises:
        InputError: Neither a pattern nor several.

    Example:
        >>> list_models(["sknet*", "senet*"], exclude_filters="*29")
        ['senet26', 'senet50', 'senet101', 'sknet26', 'sknet50', 'sknet101']
    """
    names = _matching(pattern or "*") - _matching(exclude_filters or ())
    return sorted(names, key=lambda name: [float(p) if p[:1].isdigit() else p for p in _split_numbers(name)])


def _matching(patterns: str | Iterable[str]) -> set[str]:
    several = [patterns] if isinstance(patterns, str) or not isinstance(patterns, Iterable) else list(patterns)
    for pattern in several:
        if not isinstance(pattern, str):
            raise InputError(f"{pattern!r} is no pattern of names: give text such as 'sk_*', or a list of such texts")
    return {name for pattern in several for name in fnmatch.filter(entries(), pattern)}


def _split_numbers(name: str) -> list[str]:
    return re.split(r"(\d+(?:\.\d+)?)", name)


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    init_from: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network.

    Args:
        name: A name of the zoo, ``timm:NAME`` or ``torchvision:NAME``. Options may follow an ``@``:
            ``"sk_shufflenetv2_0.5@kernels=3+3d2,select=false"``.
        num_classes: Classes; ``None`` takes 1000, and 10 for the CIFAR networks.
        in_chans: Channels of the image.
        init_from: Starting weights: ``timm:NAME.TAG``, ``torchvision:NAME.WEIGHTS``, a run folder or a file. Weights
            of the plain network start one with selective kernels too: branches that can hold the old filter start as
            it. ``default_cfg`` takes the weights' mean, std, crop_pct and interpolation; a ``.pt`` file, or a
            ``.safetensors`` file without a ``config.json`` beside it, does not say them, and the network's own stay.
        options: ``drop_rate``; ``drop_path_rate`` where the network is timm's (MobileNet, ResNeXt, SKNet-26 to 101);
            for names with selective kernels also ``kernels``, ``reduction`` (r), ``min_width`` (L), ``select`` and, in
            ShuffleNetV2, ``sk_units``. Together they build every row of the paper's Tables 3, 6, 7. With ``timm:`` and
            ``torchvision:``, ``kernels`` (``"auto"``: each site's default) grafts selective kernels as
            :func:`edge_sk.graft` does, with ``reduction``, ``min_width``, ``select`` and ``init``; other options go to
            the library. ``None`` is the default.

    Returns:
        The network in training mode, with ``default_cfg`` (timm's form).

    Raises:
        InputError: An unknown name (the nearest are suggested), option or value, or weights that do not fit.
    """
    name, spelled = parse_name(name)
    # As in timm, None is not given; but graft's kernels=None asks for each site's default.
    options = {key: value for key, value in (spelled | options).items() if value is not None or key == "kernels"}
    for key in ("drop_rate", "drop_path_rate"):
        _check_rate(key, options.get(key, 0.0))
    num_classes = None if num_classes is None else whole_number("num_classes", num_classes, least=0)
    in_chans = whole_number("in_chans", in_chans)
    for prefix, build in (("timm:", _create_timm), ("torchvision:", _create_torchvision)):
        if name.startswith(prefix):
            units = {key: options.pop(key) for key in GRAFT_OPTIONS if key in options}
            foreign_classes = 1000 if num_classes is None else num_classes
            model = build(name.removeprefix(prefix), foreign_classes, in_chans, options)
            return _finish_foreign(name, model, units, init_from)
    entry = find(name)
    check_options(entry, options)
    cfg = entry.default_cfg
    classes: int = cfg["num_classes"] if num_classes is None else num_classes
    plain_args = {key: options[key] for key in entry.options if key in options}
    state, images = (None, {}) if init_from is None else _weights.read(init_from)
    model = entry.build(**entry.build_args, num_classes=classes, in_chans=in_chans, **plain_args)
    classifier = cfg.get("classifier") or getattr(model, "default_cfg", {}).get("classifier")
    if state is not None and classes == 0:
        state = _weights.without(state, classifier)
    from_plain = state is not None and entry.graft is not None and _weights.fits(model, state)
    if from_plain:
        _weights.load(model, state or {}, source=init_from, classifier=classifier)
        size = (in_chans, *cfg["input_size"][1:])
        _insert_and_compare(entry, model, options, input_size=size, source=init_from)
    elif entry.graft is not None:
        insert_units(entry, model, options)
    if state is not None and not from_plain:
        _weights.load(model, state, source=init_from, classifier=classifier)
    _set_cfg(model, entry, images, num_classes=classes, in_chans=in_chans)
    return model


def _finish_foreign(name: str, model: Any, units: dict[str, Any], init_from: str | Path | None) -> nn.Module:
    """Graft another library's network if options ask for it, and load its weights: the plain one's before the graft."""
    if units and "kernels" not in units:
        raise InputError(
            f"{name}: {', '.join(units)} belong to selective kernels: give kernels too, for instance kernels=3+5 or "
            "kernels=auto"
        )
    state, images = (None, {}) if init_from is None else _weights.read(init_from)
    model.default_cfg.update(images)
    classifier = model.default_cfg.get("classifier")
    if state is not None and model.default_cfg["num_classes"] == 0:
        state = _weights.without(state, classifier)
    plain = state is not None and (not units or _weights.fits(model, state))
    if state is not None and plain:
        _weights.load(model, state, source=init_from, classifier=classifier)
    if units:
        kernels = None if units["kernels"] == "auto" else units["kernels"]
        rest = {key: value for key, value in units.items() if key != "kernels"}
        grafting.graft_(model, kernels=kernels, input_size=model.default_cfg["input_size"], **rest)
    if state is not None and not plain:
        _weights.load(model, state, source=init_from, classifier=classifier)
    return model


def _insert_and_compare(
    entry: Entry, model: nn.Module, options: dict[str, Any], *, input_size: tuple[int, ...], source: object
) -> None:
    """Put selective kernels into a network with weights, and say how much of its output that costs."""
    images = running.random_images(model, (2, *input_size))
    with running.evaluating(model):
        before = running.outputs(model, images)
    insert_units(entry, model, options, keep_weights=True)
    with running.evaluating(model):
        change = running.difference(before, running.outputs(model, images))
    level = logging.INFO if change <= measure.TOLERANCE else logging.WARNING
    _logger.log(
        level, "%s starts from %s: its output differs from the plain network's by %.1e", entry.name, source, change
    )


def insert_units(entry: Entry, model: nn.Module, options: dict[str, Any], *, keep_weights: bool = False) -> None:
    """Put selective kernels into the plain network of an entry, in place.

    Args:
        entry: The row of the zoo.
        model: Its plain network.
        options: ``kernels``, ``reduction``, ``min_width``, ``select``, ``sk_units``, as far as they are given.
        keep_weights: Let branches start from the filters that stood there.
    """
    recipe = entry.graft
    assert recipe is not None
    where = None if recipe.where is None else recipe.where(options.get("sk_units", "stride1"))
    unit = {
        "kernels": options.get("kernels", recipe.kernels),
        "reduction": options.get("reduction", recipe.reduction),
        "min_width": options.get("min_width", recipe.min_width),
        "select": options.get("select", True),
        "act_layer": recipe.act_layer,
    }
    grafted = grafting.insert(model, where=where, **unit)
    if keep_weights:
        for site, kernel in grafted:
            grafting.preserve.start(kernel, site)


def find(name: str) -> Entry:
    """The row of a name.

    Raises:
        InputError: There is none; the message suggests the nearest.
    """
    zoo = entries()
    if name in zoo:
        return zoo[name]
    near = difflib.get_close_matches(name, zoo, n=3)
    near.sort(key=lambda other: (-difflib.SequenceMatcher(None, name, other).ratio(), other))
    hint = f"did you mean {', '.join(near)}?" if near else "edge_sk.list_models() lists the names"
    raise InputError(f"unknown model {name!r}; {hint} (timm:NAME and torchvision:NAME are accepted too)")


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``"NAME@option=value,..."``; numbers, true and false are read as such.

    Raises:
        InputError: No text, or a part that is not ``option=value``.
    """
    if not isinstance(name, str):
        raise InputError(f"{name!r} is no name of a model: give text; edge_sk.list_models() lists the names")
    name, _, rest = name.partition("@")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{part!r} in {name}@{rest} is not option=value")
        options[key.strip()] = _read_value(key.strip(), value.strip())
    return name, options


def _read_value(key: str, text: str) -> Any:
    if key == "kernels":
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def check_options(entry: Entry, options: dict[str, Any]) -> None:
    """Refuse options that the entry does not have.

    Raises:
        InputError: Names the option and the known ones.
    """
    known = entry.options
    if entry.graft is not None:
        known += SK_OPTIONS + (("sk_units",) if entry.graft.where is not None else ())
    for key in options:
        if key not in known:
            hint = "" if entry.graft else " (it has no selective kernels)"
            raise InputError(f"{entry.name} has no option {key!r}{hint}; it has {', '.join(known)}")


def _check_rate(name: str, value: object) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= float(value) < 1:
        raise InputError(f"{name}={value!r} is not a probability below 1")


def _set_cfg(model: Any, entry: Entry, images: dict[str, Any], *, num_classes: int, in_chans: int) -> None:
    from_timm = {k: v for k, v in getattr(model, "default_cfg", {}).items() if k in ("classifier", "first_conv")}
    cfg = entry.default_cfg
    size = (in_chans, *cfg["input_size"][1:])
    model.default_cfg = cfg | from_timm | entry.cfg | images | {"num_classes": num_classes, "input_size": size}
    model.pretrained_cfg = model.default_cfg


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


def default_recipe(name: str) -> str:
    """Stem of the recipe for a name: ``light``, ``large`` or ``cifar``.

    Of timm's and torchvision's names, families made for phones (:data:`MOBILE`) get ``light`` and all others ``large``,
    as in the zoo.

    Raises:
        InputError: An unknown name of the zoo.
    """
    name, _ = parse_name(name)
    if name.startswith(("timm:", "torchvision:")):
        return "light" if any(family in name for family in MOBILE) else "large"
    return find(name).recipe


def input_size(name: str) -> tuple[int, int, int]:
    """``(C, H, W)`` of the images that a network of the zoo was designed for; 3x224x224 for other libraries' names."""
    name, _ = parse_name(name)
    if name.startswith(("timm:", "torchvision:")):
        return DEFAULT_CFG["input_size"]
    return find(name).default_cfg["input_size"]
