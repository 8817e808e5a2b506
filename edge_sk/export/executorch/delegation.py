"""How much of a lowered graph the delegate takes, and what to do about the other operators."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from edge_sk.errors import InputError
from edge_sk.export.record import Delegation, Leftover

# Why ExecuTorch 1.5's XNNPACK partitioner leaves an operator outside as networks commonly use it, and what helps.
REMEDIES: dict[str, tuple[str, str]] = {
    "split_with_sizes_copy": ("the backend has no split", "take slices, x[:, a:b], instead of chunk, split or unbind"),
    "split_copy": ("the backend has no split", "take slices, x[:, a:b], instead of chunk, split or unbind"),
    "unbind_copy": ("the backend has no unbind", "take slices of length 1 instead of unbind or iteration"),
    "select_copy": ("the backend has no select", "take a slice of length 1, x[:, i:i + 1], instead of x[:, i]"),
    "mean": ("only a mean over both spatial axes that keeps them is taken", "x.mean((2, 3), keepdim=True)"),
    "_softmax": ("softmax is taken over the last axis only", "move the axis last, or use a sigmoid for two classes"),
    "sum": ("the backend has no sum", "add the parts, or use a 1x1 convolution with weights of one"),
    "amax": ("the backend has no maximum over axes", "use max pooling or average pooling"),
    "max": ("the backend has no maximum over axes", "use max pooling or average pooling"),
    "_to_dim_order_copy": ("a conversion of type or layout", "write float constants, x + 3.0, not x + 3"),
    "clone": ("a copy", "drop contiguous() and clone()"),
    "_clone_dim_order": ("a copy", "drop contiguous() and clone()"),
    "avg_pool2d": ("padding that is counted is not taken", "pad first, or count_include_pad=False"),
    "max_pool2d_with_indices": ("ceil_mode or a stride above the kernel", "use ceil_mode=False"),
    "native_layer_norm": ("the backend has no layer norm", "use batch norm in networks for phones"),
    "native_group_norm": ("the backend has no group norm", "use batch norm in networks for phones"),
    "squeeze_copy": ("squeeze of several axes is not taken", "use flatten, view or keepdim"),
    "unsqueeze_copy": ("unsqueeze is taken at the end only", "use view, or keepdim where the axis was lost"),
    "expand_copy": ("the backend has no expand", "rely on broadcasting"),
    "slice_copy": ("a slice with a step, or of an axis of unknown size", "use step 1 and fixed sizes"),
    "index": ("the backend has no gather", "permute the weights before or after instead"),
    "pixel_unshuffle": ("the backend has no pixel unshuffle", "use a strided convolution"),
}
_UNKNOWN = ("the backend does not take it", "rewrite it with convolutions, pooling, additions and multiplications")


class _Reasons(logging.Handler):
    """Collects "WhyNoPartition: Node NAME was not partitioned because REASON"."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.by_node: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        match = re.search(r"Node (\S+) was not partitioned because (.+)", record.getMessage())
        if match:
            self.by_node.setdefault(match[1], match[2].rstrip("."))


@contextlib.contextmanager
def partitioner_reasons() -> Iterator[dict[str, str]]:
    """Collect why XNNPACK's partitioner leaves nodes outside the delegate, by node."""
    reasons = _Reasons()
    logger = logging.getLogger("executorch.backends.xnnpack.partition")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(reasons)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield reasons.by_node
    finally:
        logger.removeHandler(reasons)
        logger.setLevel(level)
        logger.propagate = propagate


def inspect(lowered: Any, reasons: Mapping[str, str]) -> Delegation:
    """Count the delegates, and the operators outside them, in a lowered graph module.

    Args:
        lowered: ``EdgeProgramManager.exported_program().graph_module`` after partitioning.
        reasons: What :func:`partitioner_reasons` collected.
    """
    from executorch.devtools.backend_debug import get_delegation_info

    info = get_delegation_info(lowered)
    left: Counter[str] = Counter()
    logged: dict[str, str] = {}
    for node in lowered.graph.nodes:
        if node.op == "call_function" and (name := _operator_name(node.target)):
            left[name] += 1
            if node.name in reasons:
                logged.setdefault(name, reasons[node.name])
    outside = []
    for name, count in left.most_common():
        why, remedy = REMEDIES.get(name, _UNKNOWN)
        outside.append(Leftover(operator=name, count=count, why=logged.get(name, why), remedy=remedy))
    return Delegation(
        delegates=info.num_delegated_subgraphs, operators_delegated=info.num_delegated_nodes, left=outside
    )


def _operator_name(target: Any) -> str | None:
    """``mean`` for ``aten.mean.dim``; ``None`` for what is no computation (delegate calls, reading a tuple)."""
    name = getattr(target, "__name__", str(target))
    if "executorch_call_delegate" in name or name == "getitem":
        return None
    parts = str(getattr(target, "_name", None) or name).replace("::", ".").split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def check_whole(delegation: Delegation, *, arch: str, backend: str) -> None:
    """Demand one delegate and nothing left.

    Raises:
        InputError: Names every operator outside, why it is, and what helps.
    """
    if delegation.whole:
        return
    lines = [f"{item.count}x {item.operator}: {item.why}; remedy: {item.remedy}" for item in delegation.left] or [
        "nothing is left outside, but the graph is in pieces"
    ]
    raise InputError(
        f"{arch} lowers to {delegation.delegates} {backend} delegates, not one, so data travels between the backend "
        f"and slow portable kernels. Left outside: {' | '.join(lines)}. Accept it with --allow-fallback"
    )
