"""Register the zoo with timm, under timm's spelling of its names."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from edge_sk.errors import InputError
from edge_sk.models._entry import Entry, Graft, timm_name
from edge_sk.models._registry import ANY, entries

# timm's registry looks these two up in the module that defines an entry point.
__all__: list[str] = []
default_cfgs: dict[str, Any] = {}


def register_with_timm() -> list[str]:
    """Make ``timm.create_model`` know the zoo; calling it again changes nothing.

    Names that timm already has (its own MobileNets) stay timm's. ``timm.create_model("edge_sk", arch=NAME)`` is any
    network of :func:`edge_sk.create_model`: run folders of grafts are loaded so.

    Returns:
        The names of the zoo that are registered, in timm's spelling.
    """
    import timm
    from timm.models import generate_default_cfgs, register_model

    if not timm.is_model(ANY):
        register_model(_any())

    registered: list[str] = []
    for entry in entries().values():
        name = timm_name(entry.name)
        if not timm.is_model(name):
            default_cfgs.update(generate_default_cfgs({name: entry.default_cfg | {"architecture": name}}))
            register_model(_entry_point(entry, name))
        if timm.model_entrypoint(name).__module__ == __name__:
            registered.append(name)
    return registered


def _any() -> Any:
    def build(pretrained: bool = False, *, arch: str, **kwargs: Any) -> nn.Module:
        from timm.models import load_pretrained

        from edge_sk.models._create import create_model

        given = kwargs.get("pretrained_cfg")
        options = {key: kwargs[key] for key in kwargs if not key.startswith(("pretrained_", "cache_dir"))}
        if pretrained and not isinstance(given, dict):
            raise InputError(f"{ANY} has no trained weights to download; timm takes local-dir:RUN")
        model: Any = create_model(arch, **options)
        model.default_cfg = model.pretrained_cfg = dict(model.default_cfg) | (given or {})
        if pretrained:
            load_pretrained(model, model.default_cfg, options.get("num_classes", 1000), options.get("in_chans", 3))
        return model

    return _registered(build, ANY, "Any network of edge_sk, by the name that edge_sk.create_model takes.")


def _registered(build: Any, name: str, doc: str) -> Any:
    """An entry point as timm's registry wants it: a function of this module, of its name."""
    build.__name__ = build.__qualname__ = name
    build.__doc__, build.__module__ = doc, __name__
    setattr(sys.modules[__name__], name, build)
    return build


def _entry_point(entry: Entry, name: str) -> Any:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from timm.models import build_model_with_cfg, load_pretrained

        given = kwargs.get("pretrained_cfg")
        if isinstance(given, dict):  # that of a folder, as local-dir:RUN has it
            kwargs["pretrained_cfg"] = given = default_cfgs[name].default.to_dict() | given
        elif pretrained:
            raise InputError(
                f"there are no trained weights of {name} to download; "
                f"timm takes local-dir:RUN, edge_sk.create_model({entry.name!r}, init_from=...) a plain network's, too"
            )
        units = {key: kwargs.pop(key) for key in Graft.OPTIONS if entry.graft and key in kwargs}

        def grafted(**args: Any) -> nn.Module:
            model = entry.build(**args)
            if entry.graft is not None:
                size = (args.get("in_chans", 3), *entry.default_cfg["input_size"][1:])
                entry.graft.into(model, units, input_size=size, init="random")
            return model

        if not entry.of_timm:
            levels = {"out_indices": tuple(range(entry.levels))}
            return build_model_with_cfg(grafted, name, pretrained=pretrained, feature_cfg=levels, **kwargs)
        # timm's entry point applies its builder itself, and names the result after the plain network.
        model: Any = grafted(**kwargs)
        theirs, ours = model.pretrained_cfg, default_cfgs[name].default.to_dict()
        if given is None:
            theirs = {key: value if key == "num_classes" else ours.get(key) for key, value in theirs.items()}
        model.pretrained_cfg = model.default_cfg = theirs
        if pretrained:
            if kwargs.get("features_only"):
                raise InputError(
                    f"{name}: features_only=True takes no weights; take the whole network's layers instead"
                )
            load_pretrained(model, theirs, model.num_classes, kwargs.get("in_chans", 3))
        return model

    return _registered(build, name, f"{entry.name} of edge_sk.")
