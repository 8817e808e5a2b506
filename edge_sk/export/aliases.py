"""Operators that hand on what they are given: no delegate takes them, and nobody needs them."""

from __future__ import annotations

import torch


def drop_aliases(program: torch.export.ExportedProgram) -> None:
    """Let who reads an alias read its source instead; in place.

    torch.export makes one of a slice that takes everything; timm's ghost module has those.
    """
    outputs = {node for node in program.graph.nodes if node.op == "output"}
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default and not outputs & set(node.users):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()
