"""Networks in folders, ours and those that timm saved, here or on the Hugging Face Hub: what their config.json says."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from edge_sk.errors import InputError
from edge_sk.models._entry import timm_name
from edge_sk.models._registry import ANY, FOLDERS, PREFIXES, did_you_mean, entries, parse_name, todays_name
from edge_sk.reading import read_json, validated
from edge_sk.running import first_line

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What timm reads in a config.json; the other fields of a run's are ours.
TIMMS = ("architecture", "label_names", "model_args", "pretrained_cfg")


class ImageFields(BaseModel, allow_inf_nan=False):
    """Fields of ``default_cfg`` that belong to the weights, not to the architecture."""

    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = None


class Saved(ImageFields, protected_namespaces=()):
    """What a ``config.json`` says of its network and images: ours has ``arch``, timm's ``architecture``."""

    arch: str | None = None
    options: dict[str, Any] = {}
    edge_sk_version: str = ""
    architecture: str | None = None
    model_args: dict[str, Any] = {}
    num_classes: int | None = None
    in_chans: int | None = None
    input_size: tuple[int, int, int] | None = None
    classes: list[str] | None = None
    label_names: list[str] | dict[str, str] | None = None
    label_descriptions: dict[str, str] | None = None

    @property
    def labels(self) -> list[str] | None:
        """The names of the classes, in the order of the outputs; ``None`` where not every class has one."""
        names = self.classes or self.label_names
        if isinstance(names, dict):
            names = [names.get(str(index), "") for index in range(len(names))]
        told = self.label_descriptions or {}
        return distinct([told.get(name, name) for name in names]) if names and all(names) else None


def read_config(folder: Path) -> Saved:
    """What ``config.json`` says; of fields that timm writes in ``pretrained_cfg``, too."""
    path = folder / CONFIG
    content = read_json(path, missing=f"{folder} has no {CONFIG}; give a run folder, or one that timm saved")
    if isinstance(content, dict):
        inner = content.get("pretrained_cfg", {})
        content = inner | content if isinstance(inner, dict) else inner
    return validated(Saved, content, path)


def local(source: str) -> str:
    """The folder of ``local-dir:FOLDER``, or, downloaded, of ``hf-hub:USER/NAME``; any other source as it is.

    Raises:
        InputError: It cannot be downloaded.
    """
    kind, _, name = source.partition(":")
    if kind == "local-dir":
        return name
    if kind != "hf-hub":
        return source
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    folder = ""
    try:
        for weights in WEIGHTS:  # one of them is enough
            folder = snapshot_download(repository, revision=revision or None, allow_patterns=[CONFIG, weights])
            if Path(folder, weights).exists():
                break
    except Exception as error:  # of the Hub's, of the connection's and of the disk's many types
        raise InputError(f"{source} cannot be downloaded: {first_line(error)}; see huggingface.co/{name}") from error
    return folder


def saved_network(folder: str) -> tuple[str, dict[str, Any]]:
    """The name of the network in a folder, and the arguments of :func:`edge_sk.create_model`.

    Raises:
        InputError: No ``config.json`` that names a network.
    """
    import timm

    saved = read_config(Path(folder))
    given: dict[str, Any] = {"num_classes": saved.num_classes}
    size = saved.input_size
    given["in_chans"] = saved.in_chans or saved.model_args.get("in_chans") or (size[0] if size else 3)
    if saved.arch is not None:
        return todays_name(saved.arch, saved.edge_sk_version), saved.options | given
    name, zoo = saved.architecture, {timm_name(name): name for name in entries()}
    arguments = {key: value for key, value in saved.model_args.items() if key not in given} | given
    if name and timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith("timm."):
        return f"timm:{name}", arguments
    if name in zoo:  # timm always names the pooling
        return zoo[name], {key: value for key, value in arguments.items() if (key, value) != ("global_pool", "avg")}
    near = did_you_mean(name, [*zoo, *timm.list_models()]) if name else ""
    raise InputError(f"{Path(folder) / CONFIG} names no network of edge_sk or timm (architecture={name!r}){near}")


def for_timm(arch: str, cfg: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What timm needs in a ``config.json`` to build a network, if ``edge_sk.register_with_timm()`` was called.

    Args:
        arch: A name, with its options.
        cfg: ``num_classes``, ``label_names``, ``input_size``, ``mean``, ``std``, ``crop_pct``, ``interpolation``.
        options: Further options.
    """
    import timm

    name, arguments = parse_name(arch)
    arguments |= options
    of_timm = name.startswith("timm:")
    plain = name.removeprefix("timm:").partition(".")[0] if of_timm else timm_name(name)
    if name.startswith(PREFIXES + FOLDERS) and ("kernels" in arguments or not of_timm):
        name, arguments = ANY, {"arch": arch} | options
    else:
        name = plain
    # With other classes than the weights', timm starts the classifier anew: it must know which layer that is.
    known = timm.get_pretrained_cfg(plain, allow_unregistered=True) if timm.is_model(plain) else None
    layers = {key: getattr(known, key) for key in ("classifier", "first_conv") if known is not None}
    names = {"label_names": cfg["label_names"]} if cfg["label_names"] else {}
    return {
        "architecture": name,
        "model_args": arguments | {"num_classes": cfg["num_classes"], "in_chans": cfg["input_size"][0]},
        "pretrained_cfg": layers | {key: value for key, value in cfg.items() if key != "label_names"},
        **names,
    }


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels that are all different: ImageNet has two cranes, which get their numbers."""
    counts = collections.Counter(labels)
    return [label if counts[label] == 1 else f"{label} ({index})" for index, label in enumerate(labels)]
