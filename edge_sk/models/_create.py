"""``create_model``: build a network from a name, options and starting weights."""

from __future__ import annotations

import logging
import numbers
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edge_sk import running
from edge_sk.errors import InputError, shown, whole_number
from edge_sk.grafting.measure import TOLERANCE
from edge_sk.models._entry import Entry, Graft
from edge_sk.models._registry import FOLDERS, PREFIXES, did_you_mean, find, parse_name

_logger = logging.getLogger(__name__)


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
            ``"sk_shufflenetv2_0.5@kernels=3+3d2,select=false"``. Or a network with its weights: ``local-dir:FOLDER`` (a
            run's, or one that timm saved) or ``hf-hub:USER/NAME``.
        num_classes: Classes, 0 for none; ``None`` takes 1000, 10 for the CIFAR networks, and a folder's own.
        in_chans: Channels of the image.
        init_from: Starting weights: ``timm:NAME.TAG``, ``torchvision:NAME.WEIGHTS``, a folder or ``hf-hub:USER/NAME``
            as for ``name``, or a file. Weights of the plain network start one with selective kernels too: with linear
            branches it gives the plain network's output. ``default_cfg`` takes the weights' mean, std, crop_pct and
            interpolation, and the names of their classes (``label_names``); a ``.pt`` file, or a ``.safetensors`` file
            without a ``config.json`` beside it, does not say them, and the network's own stay.
        options: ``drop_rate``; ``width`` of ShuffleNetV2 (times the channels of its stages); ``drop_path_rate`` where
            the network is timm's (MobileNet, ResNeXt, SKNet-26 to 101).
            For selective kernels ``kernels`` (of all sites, or of those of some stages: ``"2:3+5/3:auto"``, stages as
            :func:`edge_sk.grafting.stages` counts them), ``reduction`` (r), ``min_width`` (L), ``select``, ``act`` (the
            activation in every branch; ``"none"``: linear branches), ``sk_units`` (which sites: ``"all"``,
            ``"stride1"``, ``"late"``: stride 1 on maps of 1/16 and 1/32 of the image, ``"early"``: stride 1 on larger
            maps) and ``init`` (``"preserve"`` or ``"random"``, see :func:`edge_sk.graft`). Together they build each row
            of the paper's Tables 3, 6, 7. With ``timm:`` and ``torchvision:``, ``kernels`` (``"auto"``: each site's
            default) asks for selective kernels; other options go to the library. ``None`` is the default.

    Returns:
        The network in training mode, with ``default_cfg`` (timm's form).

    Raises:
        InputError: An unknown name (the nearest are suggested), option or value, or weights that do not fit.
    """
    from edge_sk.models import _folders, _libraries  # here: pydantic takes long to import

    if isinstance(name, str) and name.startswith(FOLDERS):
        if init_from is not None:
            raise InputError(f"{name} brings its weights; give the name of an architecture with init_from")
        folder = _folders.local(name)
        saved, given = _folders.saved_network(folder)
        given |= {} if num_classes is None else {"num_classes": num_classes}
        model: Any = create_model(saved, **given | options, init_from=folder)
        model.default_cfg["input_size"] = (
            _folders.read_config(Path(folder)).input_size or model.default_cfg["input_size"]
        )
        return model
    name, spelled = parse_name(name)
    # As in timm, None is not given; but kernels=None asks for each site's default.
    options = {key: value for key, value in (spelled | options).items() if value is not None or key == "kernels"}
    for key in ("drop_rate", "drop_path_rate"):
        rate = options.get(key, 0.0)
        if not isinstance(rate, numbers.Real) or isinstance(rate, bool) or not 0 <= rate < 1:  # type: ignore[operator]
            raise InputError(f"{key}={shown(rate)} is not a probability below 1")
    # Far above what is useful, here and elsewhere: a slip of the keyboard must not take all memory.
    num_classes = None if num_classes is None else whole_number("num_classes", num_classes, least=0, most=100_000)
    in_chans = whole_number("in_chans", in_chans, most=1024)
    units = {key: options.pop(key) for key in Graft.OPTIONS if key in options}
    foreign = name.startswith(PREFIXES)
    if foreign:
        graft = Graft() if units else None
        if units and "kernels" not in units:
            raise InputError(
                f"{name}: {', '.join(units)} belong to selective kernels: give kernels too, for instance kernels=3+5 "
                "or kernels=auto"
            )
        classes = 1000 if num_classes is None and name.startswith("timm:") else num_classes
        model = _libraries.create(name, classes, in_chans, options)
    else:
        entry = find(name)
        graft = entry.graft
        known = entry.options + (Graft.OPTIONS if graft else ())
        unknown = [key for key in (*options, *units) if key not in known]
        if arguments := [key for key in unknown if key in ("num_classes", "in_chans")]:
            raise InputError(f"{name}: {shown(arguments[0])} is no option of a name, but an argument of create_model")
        if unknown:
            known = (*known, "num_classes", "in_chans")
            hint = "" if graft else " (it has no selective kernels)"
            near = did_you_mean(unknown[0], known)
            raise InputError(f"{name} has no option {shown(unknown[0])}{hint}; it has {', '.join(known)}{near}")
        model = _build_plain(entry, options, num_classes, in_chans)
    size = model.default_cfg["input_size"]
    weights = None
    if init_from is not None:
        if not isinstance(init_from, str | Path):
            raise InputError(f"init_from={shown(init_from)} is no path and no name of weights")
        weights = _libraries.weights(str(init_from))
    if weights is not None and (graft is None or weights.fit(model)):
        weights.load(model)
        if graft is not None:
            images = running.random_images(model, (2, *size))
            before = _outputs(model, images)
            graft.into(model, units, input_size=size, init="preserve")
            change = running.difference(before, _outputs(model, images))
            level = logging.INFO if change <= TOLERANCE else logging.WARNING
            _logger.log(
                level, "%s starts from %s: its output differs from the plain network's by %.1e", name, init_from, change
            )
        return model
    if graft is not None:
        graft.into(model, units, input_size=size, init="preserve" if foreign else "random")
    if weights is not None:
        weights.load(model)
    return model


def _build_plain(entry: Entry, options: dict[str, Any], num_classes: int | None, in_chans: int) -> Any:
    """The plain network of an entry, with ``default_cfg``."""
    cfg = entry.default_cfg
    classes = cfg["num_classes"] if num_classes is None else num_classes
    model: Any = entry.build(num_classes=classes, in_chans=in_chans, **options)
    size = (in_chans, *cfg["input_size"][1:])
    model.default_cfg = model.pretrained_cfg = cfg | {"num_classes": classes, "input_size": size}
    return model


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    with running.evaluating(model):
        return running.outputs(model, images)
