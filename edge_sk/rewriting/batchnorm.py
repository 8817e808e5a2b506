"""Fold batch normalisation into the convolution before it."""

from __future__ import annotations

from torch import fx, nn
from torch.nn import functional as F

from edge_sk.rewriting.graph import Layers, argument, called_module, calls, replace_node
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
        graph.set_submodule(str(node.target), nn.Sequential(norm, both.get_submodule("act")))
        with graph.graph.inserting_before(node):
            normalized = graph.graph.call_module(f"{node.target}.0", node.args)
            replace_node(node, graph.graph.call_module(f"{node.target}.1", (normalized,)))
        count += 1
    return count


def fold_batch_norm(graph: fx.GraphModule) -> int:
    """Fold every batch norm whose input is a convolution that nothing else reads."""
    layers = Layers(graph)
    count = 0
    for node in graph.graph.find_nodes(op="call_module"):
        norm = layers.own(node, nn.BatchNorm2d)
        if norm is None or norm.running_mean is None or norm.training:
            continue
        source = node.args[0]
        conv = layers.own(source, nn.Conv2d)
        if conv is not None and len(source.users) == 1:
            graph.set_submodule(str(source.target), folded(conv, norm))
            replace_node(node, source)
            count += 1
    return count


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_DROPOUT_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


def remove_identities(graph: fx.GraphModule) -> int:
    """Drop what does nothing in eval mode: identities and dropout."""
    count = 0
    for node in list(graph.graph.nodes):
        module = called_module(graph, node)
        idle = calls(node, _DROPOUT_FUNCTIONS) and argument(node, 2, "training", default=True) is False
        if module is not None and not hooks(module):
            idle = type(module) is nn.Identity or (type(module) in _DROPOUTS and not module.training)
        if idle and node.args and isinstance(node.args[0], fx.Node):
            replace_node(node, node.args[0])
            count += 1
    return count
