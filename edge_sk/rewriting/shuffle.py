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

from edge_sk.rewriting.graph import (
    IS_CALL,
    Layers,
    argument,
    called_module,
    calls,
    is_elementwise,
    is_map,
    known,
    shuffle_functions,
)
from edge_sk.selective_kernel import DeploySelectiveKernel
from edge_sk.tracing import hooks, writes

Channel = tuple[fx.Node, int]
"""A channel of a tensor that a node outside the routing computes."""


def absorb_shuffles(graph: fx.GraphModule) -> int:
    """Absorb every channel shuffle whose neighbours can take the permutation; returns how many."""
    router = _Router(graph)
    return sum(router.absorb(region) for region in router.regions())


class _Router:
    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.layers = Layers(graph)
        self.position = {node: index for index, node in enumerate(graph.graph.nodes)}
        self.channels: dict[fx.Node, list[Channel]] = {}
        self.pieces: dict[fx.Node, list[list[Channel]]] = {}
        self.shuffles: set[fx.Node] = set()
        for node in graph.graph.nodes:
            self._route(node)

    def _route(self, node: fx.Node) -> None:
        """Follow the channels through one node, if all it does is to move them."""
        if node.op not in IS_CALL:
            return
        source = argument(node, 0, "input", "x", "tensors")
        shuffle_groups = self._shuffle_groups(node)
        if shuffle_groups and (channels := self._of(source)):
            per_group = len(channels) // shuffle_groups
            self.channels[node] = [
                channels[group * per_group + index] for index in range(per_group) for group in range(shuffle_groups)
            ]
            self.shuffles.add(node)
        elif calls(node, (torch.cat,)) and isinstance(source, list | tuple) and _along_channels(node, 1):
            parts = [self._of(part) for part in source]
            if all(parts):
                self.channels[node] = [channel for part in parts for channel in part or []]
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
        if calls(node, (*shuffle_functions(), torch.channel_shuffle)):
            groups = argument(node, 1, "groups")
        return groups if isinstance(groups, int) else 0

    def _of(self, node: Any) -> list[Channel] | None:
        """Map each channel of feature maps to its source tensor and channel; ``None`` if they are no feature maps."""
        if node in self.channels:
            return self.channels[node]
        tensor = known(node)
        return [(node, index) for index in range(tensor.shape[1])] if tensor is not None and is_map(node) else None

    def regions(self) -> Iterator[list[fx.Node]]:
        """Connected groups of moving nodes that contain a shuffle, each in graph order."""
        moving = [node for node in self.graph.graph.nodes if node in self.channels or node in self.pieces]
        seen: set[fx.Node] = set()
        for start in moving:
            if start in seen:
                continue
            region, queue = set(), [start]
            while queue:
                node = queue.pop()
                if node in region:
                    continue
                region.add(node)
                queue += [near for near in (*node.all_input_nodes, *node.users) if near in moving]
                # Two regions that read one source share its order.
                for source in node.all_input_nodes:
                    if source not in moving:
                        queue += [user for user in source.users if user in moving]
            seen |= region
            if region & self.shuffles:
                yield sorted(region, key=self.position.__getitem__)

    def absorb(self, region: list[fx.Node]) -> int:
        """Rewrite one region; 0 if a neighbour cannot take a permutation."""
        inside = set(region)
        targets = [node for node in region if any(user not in inside for user in node.users)]
        if not all(node in self.channels for node in targets):
            return 0
        sources = sorted(
            {source for node in targets for source, _ in self.channels[node]}, key=self.position.__getitem__
        )
        producers = {source: self._producers(source, inside) for source in sources}
        consumers = {target: self._consumers(target, inside) for target in targets}
        if any(found is None for found in (*producers.values(), *consumers.values())):
            return 0
        needed: dict[Channel, list[int]] = {}
        for index, target in enumerate(targets):
            for channel in self.channels[target]:
                needed.setdefault(channel, []).append(index)
        new_place: dict[Channel, int] = {}
        for source in sources:
            width = len(self._of(source) or [])
            # Channels that go to the same places lie together, those that are needed first in front.
            order = sorted(range(width), key=lambda index: needed.get((source, index), [len(targets)]))
            for place, index in enumerate(order):
                new_place[source, index] = place
            for module in producers[source] or []:
                _permute_output(module, order)
        for target in targets:
            old = self.channels[target]
            order = sorted(
                range(len(old)),
                key=lambda index: (self.position[old[index][0]], new_place[old[index]]),
            )
            self._materialize(target, [(old[index][0], new_place[old[index]]) for index in order], inside)
            for module in consumers[target] or []:
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
        if (start, stop) == (0, len(self._of(source) or [])):
            return source
        return self.graph.graph.call_function(operator.getitem, (source, (slice(None), slice(start, stop))))

    def _producers(self, node: Any, inside: set[fx.Node]) -> list[nn.Module] | None:
        """Modules to permute so that a source gives its channels in another order; ``None`` if they cannot."""
        found: list[nn.Module] = []
        if any(user not in inside for user in node.users):
            return None
        while isinstance(node, fx.Node):
            module = called_module(self.graph, node)
            if module is not None and not is_elementwise(self.graph, node):
                if not self._permutable(node):
                    return None
                found.append(module)
                if _is_dense(module):
                    return found
            elif not is_elementwise(self.graph, node):
                return None
            node = node.args[0]
            if not isinstance(node, fx.Node) or len(node.users) > 1:
                return None
        return None

    def _permutable(self, node: fx.Node) -> bool:
        """Whether a layer's channels can be permuted in its weights: dense and depthwise convolutions, and units."""
        conv, unit = self.layers.own(node, nn.Conv2d), self.layers.own(node, DeploySelectiveKernel)
        if conv is not None:
            return conv.groups in (1, conv.in_channels) and conv.groups in (1, conv.out_channels)
        return unit is not None and unit.permutable

    def _consumers(self, target: fx.Node, inside: set[fx.Node]) -> list[nn.Module] | None:
        """Modules to permute so that they take a target's channels in another order; ``None`` if they cannot."""
        found: list[nn.Module] = []
        queue = [user for user in target.users if user not in inside]
        while queue:
            node = queue.pop()
            module = called_module(self.graph, node)
            if is_elementwise(self.graph, node):
                queue += node.users
                continue
            if module is None or not self._permutable(node):
                return None
            found.append(module)
            if not _is_dense(module):
                queue += node.users
        return found


def _along_channels(node: fx.Node, position: int) -> bool:
    """Whether a node splits or joins feature maps along their channels."""
    return argument(node, position, "dim", default=0) in (1, -3)


def _is_dense(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.groups == 1


def _permute_output(module: nn.Module, order: list[int]) -> None:
    if isinstance(module, DeploySelectiveKernel):
        module.permute_channels(order)
    elif isinstance(module, nn.Conv2d):
        module.weight.data = module.weight.data[order]
        if module.bias is not None:
            module.bias.data = module.bias.data[order]


def _permute_input(module: nn.Module, order: list[int]) -> None:
    if _is_dense(module) and isinstance(module, nn.Conv2d):
        module.weight.data = module.weight.data[:, order]
    else:
        _permute_output(module, order)
