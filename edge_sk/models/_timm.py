"""Register the zoo with timm, under timm's spelling of its names."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from edge_sk.errors import InputError
from edge_sk.models._entry import Entry, Graft, timm_name
from edge_sk.models._registry import entries

# timm's registry looks these two up in the module that defines an entry point.
__all__: list[str] = []
default_cfgs: dict[str, Any] = {}


def register_with_timm() -> list[str]:
    """Make ``timm.create_model`` know the zoo; calling it again changes nothing.

    Names that timm already has (its own MobileNets) stay timm's.

    Returns:
        The names registered, in timm's spelling.
    """
    import timm
    from timm.models import generate_default_cfgs, register_model

    registered: list[str] = []
    for entry in entries().values():
        name = timm_name(entry.name)
        if not timm.is_model(name):
            default_cfgs.update(generate_default_cfgs({name: entry.default_cfg | {"architecture": name}}))
            register_model(_entry_point(entry, name))
        if timm.model_entrypoint(name).__module__ == __name__:
            registered.append(name)
    return registered


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

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{entry.name} of edge_sk."
    build.__module__ = __name__
    setattr(sys.modules[__name__], name, build)
    return build
