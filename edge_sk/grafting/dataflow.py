"""Find sites by following tensors through the network (torch.fx)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from edge_sk import tracing
from edge_sk.grafting import eligibility
from edge_sk.grafting.site import Left, Site, describe

# A convolution in a module that was not looked into, or whose weight is used without calling it.
UNSEEN = "forward does not call it as a module of its own"


class _Tracer(tracing.Tracer):
    """Traces only the submodules that contain grouped convolutions: code elsewhere need not be traceable."""

    def __init__(self, wanted: dict[str, nn.Conv2d], *, heed_marks: bool) -> None:
        super().__init__()
        self.wanted = {id(conv) for conv in wanted.values()}
        self.heed_marks = heed_marks

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one node."""
        if isinstance(m, nn.Sequential):
            return False
        if isinstance(m, nn.Conv2d | nn.modules.batchnorm._BatchNorm) or eligibility.is_selective_kernel(m):
            return True
        inside = list(m.modules())
        holds_wanted = any(id(module) in self.wanted for module in inside)
        if type(m) in self.opaque and (self.heed_marks or not holds_wanted):
            return True
        norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in inside)
        return not norms and not holds_wanted


class _Graph:
    """A traced model, with the questions that finding sites asks."""

    def __init__(self, model: nn.Module, wanted: dict[str, nn.Conv2d], *, heed_marks: bool) -> None:
        self.model = model
        self.nodes = list(_Tracer(wanted, heed_marks=heed_marks).follow(model).nodes)
        self.modules = dict(model.named_modules())
        self.calls = Counter(id(module) for node in self.nodes if (module := self.module(node)) is not None)
        read = [str(node.target) for node in self.nodes if node.op == "get_attr"]
        self.read_directly = {id(self.modules.get(name.rpartition(".")[0])) for name in read}

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def node(self, module: nn.Module) -> fx.Node | None:
        """The first call of a module."""
        return next((node for node in self.nodes if self.module(node) is module), None)

    def next(self, node: fx.Node) -> fx.Node | None:
        """What uses a node's output, past identities; ``None`` if not exactly one operation does."""
        while len(node.users) == 1:
            node = next(iter(node.users))
            if not isinstance(self.module(node), nn.Identity):
                return node
        return None

    def uses(self, node: fx.Node) -> str:
        """In words, what a node without one user goes to."""
        while len(node.users) == 1:
            node = next(iter(node.users))
        return f"its output goes to {len(node.users)} operations" if node.users else "its output is not used"


def find(model: nn.Module, *, heed_marks: bool) -> tuple[list[Site], list[Left]]:
    """Find the sites of a model in eval mode.

    Args:
        model: Not changed.
        heed_marks: Whether to stay out of modules that timm marks as not traceable, even if sites are in them.

    Returns:
        The sites, and the grouped convolutions that are none, each with the reason.

    Raises:
        Exception: Whatever the model's Python code raises when it meets a symbolic value.
    """
    wanted = eligibility.grouped_convolutions(model)
    graph = _Graph(model, wanted, heed_marks=heed_marks)
    sharing = tracing.Sharing(model)
    sites: list[Site] = []
    left: list[Left] = []
    for name, conv in wanted.items():
        found = _site(graph, sharing, name, conv)
        if isinstance(found, Site):
            sites.append(found)
        else:
            left.append(Left(name, describe(conv), found))
    return sites, left


def _site(graph: _Graph, sharing: tracing.Sharing, name: str, conv: nn.Conv2d) -> Site | str:
    """The site of a convolution, or why it is none."""
    if reason := eligibility.why_not_conv(conv, sharing):
        return reason
    start = graph.node(conv)
    if start is None:
        return UNSEEN
    if reason := _misused(graph, conv):
        return f"the convolution {reason}"
    after = graph.next(start)
    if after is None:
        return graph.uses(start)
    norm = graph.module(after)
    if norm is None:
        return f"it is followed by {_called(after)}, not by batch normalisation"
    reason = eligibility.why_not_norm(norm, sharing) or _misused(graph, norm)
    if reason:
        return reason if reason.startswith("it") else f"its {type(norm).__name__} {reason}"
    assert isinstance(norm, nn.BatchNorm2d)
    return Site(name, conv, str(after.target), norm, "dataflow")


def _misused(graph: _Graph, module: nn.Module) -> str | None:
    if (times := graph.calls[id(module)]) > 1:
        return f"is called at {times} places"
    if id(module) in graph.read_directly or any(id(child) in graph.read_directly for child in module.modules()):
        return "is read directly in forward (its weight or a buffer)"
    return None


def _called(node: fx.Node) -> str:
    if node.op == "output":
        return "the output"
    target: str | Callable[..., Any] = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
