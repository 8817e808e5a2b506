"""First step of every export: the network with its preprocessing inside, rewritten for phones, as a graph."""

from __future__ import annotations

import collections
import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edge_sk import running
from edge_sk.errors import InputError
from edge_sk.export.network import Network
from edge_sk.quantization import FakeQuantized
from edge_sk.rewriting import Rewrites, reparameterize
from edge_sk.rewriting.normalize import Normalize


def reference(network: Network, *, softmax: bool = False) -> nn.Module:
    """What an exported file must compute: the trained network, which takes images in [0, 1].

    Args:
        network: Its model is shared, not copied.
        softmax: Return probabilities instead of logits.
    """
    parts = [("normalize", Normalize(network.mean, network.std)), ("network", network.model)]
    if softmax:
        parts.append(("softmax", nn.Softmax(dim=1)))
    return nn.Sequential(collections.OrderedDict(parts)).eval()


class Flat(nn.Module):
    """What a network returns as a tuple of tensors, in the order of :attr:`Network.outputs`."""

    def forward(self, value: Any) -> tuple[Tensor, ...]:
        """Flatten a structure."""
        return tuple(running.named_tensors(value).values())


def prepare(network: Network, *, softmax: bool = False) -> tuple[nn.Module, Rewrites]:
    """Rewrite :func:`reference` for phones; the network is not changed. Also returns which rewrites applied.

    A network that was trained in int8 was rewritten before; its graph is converted.

    Raises:
        InputError: ``softmax``, and the network is no classifier.
    """
    if softmax and not network.is_classifier:
        shapes = ", ".join(f"{name} {shape}" for name, shape in network.outputs.items())
        raise InputError(f"{network.arch} is no classifier (its outputs: {shapes}): leave out the softmax")
    if isinstance(network.model, FakeQuantized):
        rewritten, rewrites = network.model.converted(), network.model.rewrites
    else:
        whole = reference(network)
        rewritten = reparameterize(whole, running.random_images(whole, (2, *network.input_size)))
        rewrites: Rewrites = rewritten.reparameterized  # type: ignore[assignment]
    if softmax:
        parts = [("logits", rewritten), ("softmax", nn.Softmax(dim=1))]
        rewritten = nn.Sequential(collections.OrderedDict(parts)).eval()
    elif not network.is_classifier:
        rewritten = nn.Sequential(collections.OrderedDict([("network", rewritten), ("flat", Flat())])).eval()
    return rewritten, rewrites


def drop_aliases(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Remove ``alias`` operators, which no delegate takes; the program itself is changed.

    torch.export makes one of a slice that takes everything; timm's ghost module has those.
    """
    outputs = {node for node in program.graph.nodes if node.op == "output"}
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default and not outputs & set(node.users):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


@contextlib.contextmanager
def export_errors(arch: str) -> Iterator[None]:
    """Turn what torch.export raises, errors of the model's own code among them, into one line.

    Raises:
        InputError: The model cannot be exported; the line of its code is named where torch.export names it.
    """
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        # torch.export ends its message with the user's stack: the last line of a module's code is where it happened.
        places = re.findall(r'File "(?!.*/torch/)([^"]+)", line (\d+), in (\w+)', str(error))
        where = f" at {places[-1][0]}:{places[-1][1]} ({places[-1][2]})" if places else ""
        raise InputError(
            f"{arch} cannot be exported{where}: torch.export says {running.first_line(error)}; "
            "rewrite the module that branches on its data"
        ) from error
