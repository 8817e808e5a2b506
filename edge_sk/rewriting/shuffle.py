"""Replace channel shuffles by permuted weights of the layers around them.

ShuffleNetV2 moves every channel in every unit: concat, shuffle, split. But which unit a channel is for is known in
advance. So nothing moves until a unit needs it: a convolution gives its channels in the order in which later units
take them, a unit's input is a concatenation of contiguous slices of earlier outputs, and the weights of both
convolutions are permuted to match. The result is the same function without a shuffle, and without the copies of the
half that passes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from edge_sk.rewriting.graph import Layers, argument, called_module, calls, is_map, known, shuffle_functions
from edge_sk.selective_kernel import DeploySelectiveKernel
from edge_sk.tracing import ACTIVATIONS, calls_activation, hooks, writes

Channel = tuple[fx.Node, int]
"""A channel of a source: a node that computes feature maps and does not just move channels."""


def absorb_shuffles(graph: fx.GraphModule) -> int:
    """Absorb every channel shuffle whose neighbours can take the permutation; returns how many."""
    router = _Router(graph)
    return sum(router.absorb(region) for region in router.regions())


class _Router:
    """The channels that shuffles, concatenations and chunks move, and the layers around them."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.layers = Layers(graph)
        self.position = {node: index for index, node in enumerate(graph.graph.nodes)}
        self.channels: dict[fx.Node, list[Channel]] = {}
        self.pieces: dict[fx.Node, list[list[Channel]]] = {}
        self.shuffles: set[fx.Node] = set()
        for node in graph.graph.nodes:
            if node.op in ("call_function", "call_method", "call_module"):
                self._route(node)

    def _route(self, node: fx.Node) -> None:
        """Follow the channels through one node, if all it does is to move them."""
        source = argument(node, 0, "input", "x", "tensors")
        groups = self._shuffle_groups(node)
        if groups and (channels := self._of(source)):
            order = torch.arange(len(channels)).view(groups, -1).T.flatten()
            self.channels[node] = [channels[index] for index in order.tolist()]
            self.shuffles.add(node)
        elif calls(node, (torch.cat,)) and isinstance(source, list | tuple) and _along_channels(node, 1):
            parts = [self._of(part) for part in source]
            if all(parts):
                self.channels[node] = [channel for part in parts for channel in part]
        elif calls(node, (torch.chunk,), ("chunk",)) and _along_channels(node, 2) and (channels := self._of(source)):
            count = argument(node, 1, "chunks")
            if isinstance(count, int):
                size = -(-len(channels) // count)
                self.pieces[node] = [channels[at : at + size] for at in range(0, len(channels), size)]
        elif node.target is operator.getitem and source in self.pieces and isinstance(node.args[1], int):
            self.channels[node] = self.pieces[source][node.args[1]]

    def _shuffle_groups(self, node: fx.Node) -> int:
        module = called_module(self.graph, node)
        groups = module.groups if isinstance(module, nn.ChannelShuffle) and not hooks(module) else None
        if calls(node, shuffle_functions()):
            groups = argument(node, 1, "groups")
        return groups if isinstance(groups, int) else 0

    def _of(self, node: Any) -> list[Channel]:
        """The source of each channel of feature maps; empty for other values."""
        if node in self.channels:
            return self.channels[node]
        tensor = known(node)
        return [(node, index) for index in range(tensor.shape[1])] if tensor and is_map(node) else []

    def regions(self) -> Iterator[list[fx.Node]]:
        """Connected groups of moving nodes that contain a shuffle, each in graph order."""
        unseen = {*self.channels, *self.pieces}
        while unseen:
            queue = [min(unseen, key=self.position.__getitem__)]
            region: set[fx.Node] = set()
            while queue:
                node = queue.pop()
                region.add(node)
                # Two regions that read one source share its order.
                siblings = [user for source in node.all_input_nodes for user in source.users]
                queue += unseen.intersection((*node.all_input_nodes, *node.users, *siblings)) - region
            unseen -= region
            if region & self.shuffles:
                yield sorted(region, key=self.position.__getitem__)

    def absorb(self, region: list[fx.Node]) -> int:
        """Rewrite one region; 0 if a neighbour cannot take a permutation."""
        inside = set(region)
        targets = [node for node in region if not inside.issuperset(node.users)]
        if not all(node in self.channels for node in targets):
            return 0
        needed: dict[Channel, list[int]] = {}
        for index, target in enumerate(targets):
            for channel in self.channels[target]:
                needed.setdefault(channel, []).append(index)
        sources = sorted({source for source, _ in needed}, key=self.position.__getitem__)
        producers = {source: self._producers(source, inside) for source in sources}
        consumers = {target: self._consumers(target, inside) for target in targets}
        if not all((*producers.values(), *consumers.values())):
            return 0
        new_place: dict[Channel, int] = {}
        for source in sources:
            # Channels that go to the same places lie together, those that are needed first in front.
            channels = sorted(self._of(source), key=lambda channel: needed.get(channel, [len(targets)]))
            new_place |= {channel: place for place, channel in enumerate(channels)}
            for module in producers[source]:
                _permute_output(module, [index for _, index in channels])
        for target in targets:
            old = self.channels[target]
            order = sorted(range(len(old)), key=lambda index: (self.position[old[index][0]], new_place[old[index]]))
            self._materialize(target, [(old[index][0], new_place[old[index]]) for index in order], inside)
            for module in consumers[target]:
                _permute_input(module, order)
        self.graph.graph.eliminate_dead_code(writes)
        return len(inside & self.shuffles)

    def _materialize(self, target: fx.Node, channels: list[Channel], inside: set[fx.Node]) -> None:
        """Gather a target from contiguous runs of its sources."""
        runs: list[tuple[fx.Node, int, int]] = []
        for source, place in channels:
            if runs and runs[-1][0] is source and runs[-1][2] == place:
                runs[-1] = (source, runs[-1][1], place + 1)
            else:
                runs.append((source, place, place + 1))
        with self.graph.graph.inserting_before(target.next):
            parts = [self._slice(*run) for run in runs]
            gathered = parts[0] if len(parts) == 1 else self.graph.graph.call_function(torch.cat, (parts, 1))
        target.replace_all_uses_with(gathered, delete_user_cb=lambda user: user not in inside)

    def _slice(self, source: fx.Node, start: int, stop: int) -> fx.Node:
        if (start, stop) == (0, len(self._of(source))):
            return source
        return self.graph.graph.call_function(operator.getitem, (source, (slice(None), slice(start, stop))))

    def _producers(self, node: Any, readers: set[fx.Node]) -> list[nn.Module]:
        """Modules to permute so that a source gives its channels in another order; empty if they cannot."""
        found: list[nn.Module] = []
        while isinstance(node, fx.Node) and readers.issuperset(node.users):
            module = self._permutable(node)
            if module is not None:
                found.append(module)
                if _is_dense(module):
                    return found
            elif not self._is_elementwise(node):
                return []
            readers, node = {node}, node.args[0]
        return []

    def _consumers(self, target: fx.Node, inside: set[fx.Node]) -> list[nn.Module]:
        """Modules to permute so that they take a target's channels in another order; empty if they cannot."""
        found: list[nn.Module] = []
        queue = [user for user in target.users if user not in inside]
        while queue:
            node = queue.pop()
            module = self._permutable(node)
            if module is not None:
                found.append(module)
            elif not self._is_elementwise(node):
                return []
            if module is None or not _is_dense(module):
                queue += node.users
        return found

    def _permutable(self, node: fx.Node) -> nn.Module | None:
        """The layer that a node calls, if its weights can permute its channels: dense and depthwise, and units."""
        conv, unit = self.layers.own(node, nn.Conv2d), self.layers.own(node, DeploySelectiveKernel)
        if conv is not None:
            whole = conv.groups in (1, conv.in_channels) and conv.groups in (1, conv.out_channels)
            return conv if whole else None
        return unit if unit is not None and unit.permutable else None

    def _is_elementwise(self, node: fx.Node) -> bool:
        """Whether a node maps each value of one tensor by itself, whatever its channel."""
        if len(node.all_input_nodes) != 1:
            return False
        module = called_module(self.graph, node)
        if module is None:
            return calls_activation(node) or calls(node, (torch.clamp,), ("clamp", "contiguous"))
        alike = isinstance(module, (*ACTIVATIONS, nn.Identity, nn.Dropout)) and not isinstance(module, nn.PReLU)
        return alike and not hooks(module)


def _along_channels(node: fx.Node, position: int) -> bool:
    """Whether a node splits or joins feature maps along their channels."""
    return argument(node, position, "dim", default=0) in (1, -3)


def _is_dense(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.groups == 1


def _permute_output(module: nn.Module, order: list[int]) -> None:
    if isinstance(module, DeploySelectiveKernel):
        module.permute_channels(order)
    else:
        for parameter in module.parameters():
            parameter.data = parameter.data[order]


def _permute_input(module: nn.Module, order: list[int]) -> None:
    if _is_dense(module) and isinstance(module, nn.Conv2d):
        module.weight.data = module.weight.data[:, order]
    else:
        _permute_output(module, order)
