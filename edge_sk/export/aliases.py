"""Operators that hand on what they are given: no delegate takes them, and nobody needs them."""

from __future__ import annotations

import torch


def drop_aliases(program: torch.export.ExportedProgram) -> None:
    """Let who reads an alias, or a slice that takes everything, read its source instead; in place.

    timm's ghost module ends in such a slice wherever its channels come out even.
    """
    outputs = {node for node in program.graph.nodes if node.op == "output"}
    for node in list(program.graph.nodes):
        if _hands_on(node) and not outputs & set(node.users):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()


def _hands_on(node: torch.fx.Node) -> bool:
    if node.target is torch.ops.aten.alias.default:
        return True
    if node.target is not torch.ops.aten.slice.Tensor:
        return False
    source = node.args[0]
    assert isinstance(source, torch.fx.Node)
    # Steps of more than one leave something out wherever there is more than one.
    return node.meta["val"].shape == source.meta["val"].shape
