"""Find the convolutions of a network that a selective kernel can replace, and say why it cannot replace the others.

A unit stands in the convolution's place, whatever is behind it. Batch normalisation becomes a part of the branches if
nothing else reads the convolution's output; everything else stays. torch.fx follows the tensors to tell; in modules
that cannot be traced the next module registered counts as the one behind. A run of the network then confirms every
site.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from torch import Tensor, fx, nn

from edge_sk import running, tracing
from edge_sk.grafting import eligibility
from edge_sk.grafting.site import Site, Skipped, describe


def find(model: nn.Module) -> tuple[list[Site], list[Skipped], str | None]:
    """Find the sites of a model in eval mode, without running it.

    Returns:
        The sites; the other grouped convolutions, each with the reason; and why torch.fx could not follow the whole
        model, ``None`` if it could.
    """
    convolutions = eligibility.grouped_convolutions(model)
    dataflow, untraced = _follow(model, convolutions.values())
    registered, shared = _registered_behind(model), tracing.shared_parameters(model)
    sites: list[Site] = []
    skipped: list[Skipped] = []
    for name, conv in convolutions.items():
        traced = dataflow if dataflow and conv in dataflow.calls else None
        reason = eligibility.why_not_conv(conv, shared) or (traced.misused(conv) if traced else None)
        if reason or not name:
            skipped.append(Skipped(name, describe(conv), reason or "it is the whole network: wrap it in nn.Sequential"))
            continue
        path, norm = (traced.behind(conv) if traced else registered.get(conv)) or (None, None)
        if norm is None or not eligibility.becomes_the_branches(norm, shared):
            path = norm = None
        sites.append(Site(name, conv, path, norm, "dataflow" if traced else "structure"))
    return sites, skipped, untraced


def _follow(model: nn.Module, convolutions: Collection[nn.Conv2d]) -> tuple[_Dataflow | None, str | None]:
    """Trace a model; if not all of it can be traced, without the modules that timm marks as untraceable."""
    untraced = None
    for open_marked in (True, False):
        try:
            return _Dataflow(model, _Tracer(convolutions, open_marked=open_marked)), untraced
        except Exception as error:  # Tracing runs the model's own Python code, which can raise anything.
            untraced = untraced or f"{type(error).__name__}: {running.first_line(error)}"[:200]
    return None, untraced


class _Tracer(tracing.Tracer):
    """Traces only the submodules that hold grouped convolutions or batch norms: code elsewhere need not be traceable.

    With ``open_marked`` also those that timm marks as untraceable, if they hold grouped convolutions.
    """

    def __init__(self, convolutions: Collection[nn.Conv2d], *, open_marked: bool) -> None:
        super().__init__()
        self.convolutions, self.open_marked = set(convolutions), open_marked

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one node."""
        norm = nn.modules.batchnorm._BatchNorm
        if isinstance(m, nn.Sequential):
            return False
        if isinstance(m, nn.Conv2d | norm) or eligibility.is_selective_kernel(m):
            return True
        holds_convolutions = not self.convolutions.isdisjoint(m.modules())
        if type(m) in self.opaque and not (self.open_marked and holds_convolutions):
            return True
        return not holds_convolutions and not any(isinstance(part, norm) for part in m.modules())


class _Dataflow:
    """Where the tensors of a traced model go."""

    def __init__(self, model: nn.Module, tracer: _Tracer) -> None:
        self.modules = dict(model.named_modules())
        graph = tracer.follow(model)
        self.calls: defaultdict[nn.Module, list[fx.Node]] = defaultdict(list)
        for node in graph.find_nodes(op="call_module"):
            self.calls[self.modules[str(node.target)]].append(node)
        owners = [str(node.target).rpartition(".")[0] for node in graph.find_nodes(op="get_attr")]
        self.read_directly = {self.modules.get(name) for name in owners}

    def behind(self, conv: nn.Conv2d) -> tuple[str, nn.Module] | None:
        """The one module that reads a convolution's output, past identities, with its path."""
        node = self.calls[conv][0]
        while len(node.users) == 1:
            (node,) = node.users
            module = self.modules[str(node.target)] if node.op == "call_module" else None
            if not isinstance(module, nn.Identity):
                return None if module is None or self.misused(module) else (str(node.target), module)
        return None

    def misused(self, module: nn.Module) -> str | None:
        """How the model uses a module otherwise than by one call."""
        if (times := len(self.calls[module])) > 1:
            return f"it is called at {times} places"
        if not self.read_directly.isdisjoint(module.modules()):
            return "its weight or a buffer is read directly in forward"
        return None


def _registered_behind(model: nn.Module) -> dict[nn.Module, tuple[str, nn.Module]]:
    """The next sibling of every module that is no identity, with its path."""
    behind: dict[nn.Module, tuple[str, nn.Module]] = {}
    for prefix, parent in model.named_modules():
        children = [(name, child) for name, child in parent.named_children() if not isinstance(child, nn.Identity)]
        for (_, child), (name, sibling) in itertools.pairwise(children):
            behind[child] = (f"{prefix}.{name}" if prefix else name, sibling)
    return behind


def confirm(model: nn.Module, images: Tensor, sites: list[Site]) -> tuple[list[Site], list[Skipped]]:
    """Run a model in eval mode: note the resolution of every site, and skip sites that the run contradicts.

    Sites keep a norm that was found by structure only if it reads the convolution's output.

    Raises:
        InputError: The model does not run on these images.
    """
    runs: defaultdict[nn.Module, list[tuple[Any, Any]]] = defaultdict(list)  # input and output of every call

    def note(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        runs[module].append((args[0] if args else None, result))

    with contextlib.ExitStack() as hooks:
        for module in {module for site in sites for module in (site.conv, site.norm_module) if module is not None}:
            hooks.enter_context(module.register_forward_hook(note))
        running.outputs(model, images)
    confirmed: list[Site] = []
    skipped: list[Skipped] = []
    for site in sites:
        of_conv = runs[site.conv]
        reason = f"it runs {len(of_conv)} times in one forward" if of_conv else "it does not run on this input"
        if len(of_conv) == 1:
            reason = None if of_conv[0][1].ndim == 4 else "it runs on an image without a batch"
        if reason:
            skipped.append(Skipped(site.name, describe(site.conv), reason))
            continue
        if site.norm_module is not None:
            of_norm = runs[site.norm_module]
            reads = site.found_by == "dataflow" or (of_norm and of_norm[0][0] is of_conv[0][1])
            if len(of_norm) > 1 or not reads:
                site = dataclasses.replace(site, norm=None, norm_module=None)
        height, width = of_conv[0][1].shape[2:]
        stage = round(math.log2(images.shape[2] / height)) - 1
        confirmed.append(dataclasses.replace(site, resolution=(height, width), stage=stage))
    return confirmed, skipped
