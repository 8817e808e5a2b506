"""Fold batch normalisation into the convolution before it."""

from __future__ import annotations

from torch import fx, nn
from torch.nn import functional as F

from edge_sk.rewriting.graph import Layers, add_module, argument, called_module, calls, replace_module, replace_node
from edge_sk.selective_kernel import folded
from edge_sk.tracing import hooks, is_norm_act


def split_norm_act(graph: fx.GraphModule) -> int:
    """Take timm's batch norm with activation apart, so that its norm can be folded."""
    layers = Layers(graph)
    count = 0
    for node in graph.graph.find_nodes(op="call_module"):
        module = called_module(graph, node)
        both = layers.own(node, type(module)) if module is not None and is_norm_act(module) else None
        if not isinstance(both, nn.BatchNorm2d) or both.running_mean is None:
            continue
        norm = nn.BatchNorm2d(both.num_features, both.eps, affine=both.affine).to(both.running_mean).eval()
        norm.load_state_dict(both.state_dict(), strict=False)
        names = [
            add_module(graph, f"{node.target}_{name}", part)
            for name, part in (("norm", norm), ("act", both.get_submodule("act")))
        ]
        with graph.graph.inserting_before(node):
            normalized = graph.graph.call_module(names[0], node.args)
            replace_node(node, graph.graph.call_module(names[1], (normalized,)))
        count += 1
    return count


def fold_batch_norm(graph: fx.GraphModule) -> int:
    """Fold every batch norm whose input is a convolution that nothing else reads."""
    layers = Layers(graph)
    count = 0
    for node in graph.graph.find_nodes(op="call_module"):
        norm = layers.own(node, nn.BatchNorm2d)
        usable = norm is not None and norm.running_mean is not None and not norm.training
        conv = layers.own(node.args[0], nn.Conv2d) if usable else None
        if norm is None or conv is None or len(node.args[0].users) > 1:
            continue
        replace_module(graph, node.args[0], folded(conv, norm))
        replace_node(node, node.args[0])
        count += 1
    return count


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_DROPOUT_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


def remove_identities(graph: fx.GraphModule) -> int:
    """Drop what does nothing in eval mode: identities and dropout."""
    count = 0
    for node in list(graph.graph.nodes):
        module = called_module(graph, node)
        if module is None:
            nothing = calls(node, _DROPOUT_FUNCTIONS) and argument(node, 2, "training", default=True) is False
        else:
            inactive = type(module) is nn.Identity or (type(module) in _DROPOUTS and not module.training)
            nothing = inactive and not hooks(module)
        if nothing and node.args and isinstance(node.args[0], fx.Node):
            replace_node(node, node.args[0])
            count += 1
    return count
