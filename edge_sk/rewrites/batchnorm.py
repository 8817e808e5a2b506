"""Batch normalisation goes into the convolution before it."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edge_sk.rewrites.trace import call_counts, called_module, replace_module


def split_norm_act(model: nn.Module) -> int:
    """Take timm's batch-norm-with-activation apart, so that its norm can be folded."""
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            act = getattr(child, "act", None)
            if isinstance(child, nn.BatchNorm2d) and type(child) is not nn.BatchNorm2d and isinstance(act, nn.Module):
                norm = nn.BatchNorm2d(child.num_features, child.eps, affine=child.affine)
                norm.load_state_dict(child.state_dict(), strict=False)
                setattr(parent, name, nn.Sequential(norm, act).eval())
                count += 1
    return count


def fold_batch_norm(graph: fx.GraphModule) -> int:
    """Fold every batch norm whose input is a convolution that nothing else reads."""
    counts = call_counts(graph)
    count = 0
    for node in list(graph.graph.nodes):
        norm = called_module(graph, node)
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
            continue
        source = node.args[0]
        conv = called_module(graph, source)
        if type(conv) is not nn.Conv2d or len(source.users) > 1 or counts[id(conv)] > 1 or counts[id(norm)] > 1:
            continue
        replace_module(graph, source, fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
        count += 1
    return count


def remove_identities(graph: fx.GraphModule) -> int:
    """Drop what does nothing in eval mode: identities and dropout."""
    count = 0
    for node in list(graph.graph.nodes):
        module = called_module(graph, node)
        nothing = isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d) or (
            node.op == "call_function" and node.target in (nn.functional.dropout, nn.functional.dropout2d)
        )
        if nothing and len(node.args) >= 1:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            count += 1
    return count
