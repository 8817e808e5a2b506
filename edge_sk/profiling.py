r"""What a network costs: parameters, multiply-accumulates (MACs), activations, per module.

``python -m edge_sk.profiling sk_shufflenetv2_1.0 shufflenetv2_1.0`` prints one comparison.

Conventions, all from one trace by `fvcore <https://github.com/facebookresearch/fvcore>`_:

- **MACs**: multiplications of convolutions and matrix products; a bias adds none, and a batch norm none,
  because at inference it folds into its convolution. What the SKNet and ShuffleNetV2 papers call FLOPs;
  half of what ``torch.utils.flop_counter`` prints.
- **fvcore's own total** is larger: its ``total()`` adds 2 per element of a batch norm, 1 per element that
  enters an adaptive average pool, and 4 or 5 per element of layer and group norms and of bilinear resizing.
  Kept as :attr:`Profile.fvcore_total`.
- **Activations**: elements that convolutions and matrix products write (fvcore's convention).
- **Elementwise work**: elements that every other computing operator goes over (additions, multiplications,
  activation functions, pooling, softmax): the larger of its first input and its output. No MAC count shows
  it; latency does.
- **Gates**: MACs inside channel attention (SK's gate, squeeze-and-excitation, CBAM, BAM); part of the MACs.
- **Unsupported**: operators that compute but that neither fvcore nor this file counts, for instance fused
  attention.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edge_sk.errors import InputError, script

if TYPE_CHECKING:
    from rich.table import Table

# Operators outside convolutions and matrix products that go over every element; their in-place forms too.
ELEMENTWISE = (
    "abs",
    "add",
    "addcmul",
    "avg_pool1d",
    "avg_pool2d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "amax",
    "amin",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "cumsum",
    "div",
    "elu",
    "erf",
    "exp",
    "gelu",
    "glu",
    "grid_sampler",
    "group_norm",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "lerp",
    "linalg_vector_norm",
    "log",
    "log_softmax",
    "logsumexp",
    "max",
    "max_pool1d",
    "max_pool2d",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mish",
    "mul",
    "neg",
    "norm",
    "pow",
    "prelu",
    "prod",
    "reciprocal",
    "relu",
    "relu6",
    "rsqrt",
    "rsub",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "sqrt",
    "square",
    "std",
    "sub",
    "sum",
    "tanh",
    "upsample_bicubic2d",
    "upsample_bilinear2d",
    "upsample_nearest2d",
    "var",
    "var_mean",
)
# Operators that only move data: free here, but a concatenation can be the largest feature map.
MOVING = ("cat", "constant_pad_nd", "stack")
MATRIX = ("_convolution", "addmm", "bmm", "einsum", "linear", "matmul", "mm")

# Channel attention, by class name so that neither timm nor torchvision need be imported.
GATES = frozenset(
    (
        "Gate",
        "BAM",
        "BamModule",
        "CbamModule",
        "LightCbamModule",
        "EcaModule",
        "EffectiveSEModule",
        "SEModule",
        "SqueezeExcite",
        "SqueezeExciteCl",
        "SqueezeExcitation",
        "SelectiveKernelAttn",
    )
)

DEFAULT_INPUT = (1, 3, 224, 224)


@dataclasses.dataclass(frozen=True)
class ModuleCost:
    """What one module costs, its children included.

    Args:
        type: Class name.
        params: Parameters; one that is shared counts once.
        macs: Multiply-accumulates of convolutions and matrix products.
        gate_macs: Those of them inside channel attention.
        activations: Elements that convolutions and matrix products write.
        elementwise: Elements that all other operators go over.
    """

    type: str
    params: int
    macs: int
    gate_macs: int
    activations: int
    elementwise: int


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """A tensor and the module that made it."""

    shape: tuple[int, ...]
    module: str

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        """Write shape and module."""
        return f"{'x'.join(map(str, self.shape))} ({self.module or 'network'})"


class ModuleTable(dict[str, ModuleCost]):
    """Costs by module name, in the order of the modules; the network's own name is ``""``."""

    def __str__(self) -> str:
        """Write the costs as a table."""
        return _render(_module_table(self))


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a network costs for one input. See the module for the conventions.

    Args:
        name: Architecture or class.
        input_size: Shape of the input, batch included.
        modules: Cost of every module.
        operators: MACs by operator.
        elementwise_operators: Elementwise work by operator.
        largest_feature_map: The largest tensor that an operator wrote.
        unsupported: Operators that no one counted, and how often each was met.
        fvcore_total: ``fvcore.nn.FlopCountAnalysis(model, input).total()``.
    """

    name: str
    input_size: tuple[int, ...]
    modules: ModuleTable
    operators: dict[str, int]
    elementwise_operators: dict[str, int]
    largest_feature_map: FeatureMap
    unsupported: dict[str, int]
    fvcore_total: int

    @property
    def params(self) -> int:
        """Parameters, buffers not included."""
        return self.modules[""].params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and matrix products, batch norm folded."""
        return self.modules[""].macs

    @property
    def gate_macs(self) -> int:
        """MACs inside channel attention (part of :attr:`macs`)."""
        return self.modules[""].gate_macs

    @property
    def activations(self) -> int:
        """Elements that convolutions and matrix products write."""
        return self.modules[""].activations

    @property
    def elementwise(self) -> int:
        """Elements that all other operators go over."""
        return self.modules[""].elementwise

    def by_module(self, depth: int | None = 1) -> ModuleTable:
        """Costs of the modules down to ``depth`` levels below the network (``None``: all).

        Raises:
            InputError: A negative depth.
        """
        if depth is not None and depth < 0:
            raise InputError(f"depth {depth} is negative; 0 is the network, 1 its children, None every module")
        return ModuleTable(
            (name, cost) for name, cost in self.modules.items() if depth is None or _level(name) <= depth
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the modules, as plain data."""
        return {
            "name": self.name,
            "input_size": list(self.input_size),
            "params": self.params,
            "macs": self.macs,
            "gate_macs": self.gate_macs,
            "activations": self.activations,
            "elementwise": self.elementwise,
            "largest_feature_map": {
                "shape": list(self.largest_feature_map.shape),
                "elements": self.largest_feature_map.elements,
                "module": self.largest_feature_map.module,
            },
            "operators": self.operators,
            "elementwise_operators": self.elementwise_operators,
            "unsupported": self.unsupported,
            "fvcore_total": self.fvcore_total,
        }

    def __str__(self) -> str:
        """Write the totals, one per line."""
        lines = [
            f"{self.name}, input {'x'.join(map(str, self.input_size))}",
            f"  parameters           {self.params:>15,}",
            f"  MACs                 {self.macs:>15,}  convolutions and matrix products, batch norm folded",
            f"    inside gates       {self.gate_macs:>15,}  channel attention",
            f"  activations          {self.activations:>15,}  written by convolutions and matrix products",
            f"  elementwise          {self.elementwise:>15,}  elements in all other operators",
            f"  largest feature map  {self.largest_feature_map.elements:>15,}  {self.largest_feature_map}",
        ]
        if self.unsupported:
            lines.append(f"  not counted: {_unsupported_text(self)}")
        return "\n".join(lines)


def profile(model: nn.Module, input_size: int | Sequence[int] | None = None) -> Profile:
    """Count what a network costs for one image.

    The network runs once, in evaluation mode and without gradients, on the device and in the type of its
    parameters; its mode and its hooks are restored, its parameters and buffers are not touched.

    Args:
        model: Any module that takes one tensor.
        input_size: Shape of the input, batch included; or the side of a square image; ``None`` takes
            ``model.default_cfg["input_size"]`` where there is one, otherwise ``(1, 3, 224, 224)``.

    Raises:
        InputError: A bad shape, a network that does not run on it, or one that cannot be traced.

    Example:
        >>> profile(nn.Conv2d(3, 8, 3, padding=1, bias=False), (1, 3, 10, 10)).macs == 3 * 8 * 9 * 10 * 10
        True
    """
    shape = _input_shape(model, input_size)
    analysis, largest = _trace(model, shape)
    counts = analysis.by_module_and_operator()
    gates = [name for name, module in model.named_modules() if type(module).__name__ in GATES]
    outermost = [name for name in gates if not any(name.startswith(f"{other}.") for other in gates if other != name)]
    modules = ModuleTable()
    for name, module in model.named_modules():
        count = counts[name]
        inside = [gate for gate in outermost if not name or gate == name or gate.startswith(f"{name}.")]
        in_gate = any(name == gate or name.startswith(f"{gate}.") for gate in outermost)
        macs = _summed(count, "macs")
        modules[name] = ModuleCost(
            type=type(module).__name__,
            params=sum(parameter.numel() for parameter in module.parameters()),
            macs=macs,
            gate_macs=macs if in_gate else sum(_summed(counts[gate], "macs") for gate in inside),
            activations=_summed(count, "activations"),
            elementwise=_summed(count, "elementwise"),
        )
    return Profile(
        name=_name(model),
        input_size=shape,
        modules=modules,
        operators=_operators(counts[""], "macs"),
        elementwise_operators=_operators(counts[""], "elementwise"),
        largest_feature_map=largest,
        unsupported=dict(analysis.unsupported_ops()),
        fvcore_total=_summed(counts[""], "macs") + _summed(counts[""], "fvcore"),
    )


def comparison(profiles: Sequence[Profile], title: str | None = None) -> Table:
    """A rich table with one row per network."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("network", no_wrap=True)
    for column in ("input", "params M", "MACs M", "in gates M", "elementwise M", "activations M"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("largest feature map", no_wrap=True)
    unsupported = any(one.unsupported for one in profiles)
    if unsupported:
        table.add_column("not counted")
    for one in profiles:
        row = [
            one.name,
            "x".join(map(str, one.input_size[1:])),
            *(
                f"{value / 1e6:,.{digits}f}"
                for value, digits in (
                    (one.params, 3),
                    (one.macs, 2),
                    (one.gate_macs, 3),
                    (one.elementwise, 2),
                    (one.activations, 2),
                )
            ),
            str(one.largest_feature_map),
        ]
        table.add_row(*row, *([_unsupported_text(one)] if unsupported else []))
    return table


def _fvcore() -> Any:
    """Import ``fvcore.nn`` without torch's notice about a loss in it, which uses ``torch.jit.script``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
        import fvcore.nn
    return fvcore.nn


def _trace(model: nn.Module, shape: tuple[int, ...]) -> tuple[Any, FeatureMap]:
    """Run the network once under fvcore's trace with handles that count everything at once."""
    analysis_class = _fvcore().FlopCountAnalysis
    largest = [FeatureMap((0,), "")]
    image = _image(model, shape)
    with _restored(model), torch.no_grad():
        model.eval()
        try:
            # A trace must end in tensors: networks for segmentation or detection answer with a dictionary.
            model.register_forward_hook(lambda _module, _inputs, output: tuple(_tensors(output)))
            analysis = analysis_class(model, (image,)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            _set_handles(analysis, largest)
            analysis.by_operator()
        except Exception as error:
            failure: Exception | None = error
        else:
            return analysis, largest[0]
    raise InputError(_why(model, shape, image, failure)) from failure


def _set_handles(analysis: Any, largest: list[FeatureMap]) -> None:
    """Replace fvcore's handles by ones that call them and sort what they give by kind."""
    flop_handles = dict(analysis._op_handles)
    analysis.clear_op_handles()

    def handle(name: str, kind: str) -> Callable[[Any, Any], Counter[str]]:
        flops = flop_handles.get(f"aten::{name.removesuffix('_') if name != '_convolution' else name}")

        def count(inputs: Any, outputs: Any) -> Counter[str]:
            shape = _shape(outputs[0])
            if shape is None:
                return Counter()
            if math.prod(shape) > largest[0].elements:
                largest[0] = FeatureMap(tuple(shape), outputs[0].node().scopeName().split("/")[-1])
            counted: Counter[str] = Counter()
            flop = flops(inputs, outputs) if flops else 0
            flop = sum(flop.values()) if isinstance(flop, Counter) else flop
            if kind == "macs":
                label = "conv" if name == "_convolution" else name
                counted[f"macs {label}"] = int(flop)
                counted[f"activations {label}"] = math.prod(shape)
            else:
                counted[f"fvcore {name}"] = int(flop)
            if kind == "elementwise":
                first = _shape(inputs[0])
                elements = max(math.prod(shape), math.prod(first) if first is not None else 0)
                counted[f"elementwise {name.removesuffix('_')}"] = elements
            return counted

        return count

    for name in MATRIX:
        analysis.set_op_handle(f"aten::{name}", handle(name, "macs"))
    for name in ELEMENTWISE:
        analysis.set_op_handle(f"aten::{name}", handle(name, "elementwise"))
        analysis.set_op_handle(f"aten::{name}_", handle(f"{name}_", "elementwise"))
    for name in (*MOVING, "batch_norm"):
        analysis.set_op_handle(f"aten::{name}", handle(name, "none"))


def _shape(value: Any) -> list[int] | None:
    """Shape of a floating-point tensor in the trace; ``None`` for anything else (sizes are integers)."""
    if not value.isCompleteTensor() or not value.type().dtype().is_floating_point:
        return None
    return value.type().sizes()


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Put back modes and hooks: fvcore leaves its hooks on the modules when a trace fails."""
    saved = [
        (module, module.training, list(module._forward_hooks), list(module._forward_pre_hooks))
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, training, hooks, pre_hooks in saved:
            module.training = training
            for registered, kept in ((module._forward_hooks, hooks), (module._forward_pre_hooks, pre_hooks)):
                for key in [key for key in registered if key not in kept]:
                    del registered[key]


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


def _image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if reference.is_meta:
        raise InputError(f"{_name(model)} has no weights (device 'meta'), so it cannot be traced; create it on the cpu")
    try:
        return torch.zeros(shape, dtype=reference.dtype, device=reference.device)
    except RuntimeError as error:
        raise InputError(f"input {_times(shape)} cannot be made: {_one_line(error)}") from error


def _why(model: nn.Module, shape: tuple[int, ...], image: Tensor, failure: Exception | None) -> str:
    """Tell an input that does not fit from a network that cannot be traced, by running it without a trace."""
    with _restored(model), torch.no_grad():
        model.eval()
        try:
            model(image)
        except Exception as error:
            return (
                f"{_name(model)} does not run on an input of {_times(shape)}: {_one_line(error)}; "
                "try another input size"
            )
    return (
        f"{_name(model)} cannot be traced, so it cannot be counted: {_one_line(failure)}; "
        "profile a plain nn.Module that takes one tensor, not a scripted or compiled one"
    )


def _input_shape(model: nn.Module, size: int | Sequence[int] | None) -> tuple[int, ...]:
    default = tuple((getattr(model, "default_cfg", None) or {}).get("input_size", DEFAULT_INPUT[1:]))
    if size is None:
        size = (1, *default)
    elif isinstance(size, int):
        size = (1, default[0], size, size)
    shape = tuple(size)
    if not shape or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shape):
        raise InputError(
            f"input size {size!r} is not a shape of whole numbers of at least 1; "
            "give the side of a square image, or the whole shape such as (1, 3, 224, 224)"
        )
    return shape


def _name(model: nn.Module) -> str:
    cfg = getattr(model, "default_cfg", None)
    return (cfg.get("architecture") if isinstance(cfg, dict) else None) or type(model).__name__


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _one_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _level(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _summed(count: Counter[str], kind: str) -> int:
    return sum(value for key, value in count.items() if key.startswith(f"{kind} "))


def _operators(count: Counter[str], kind: str) -> dict[str, int]:
    found = {key.removeprefix(f"{kind} "): value for key, value in count.items() if key.startswith(f"{kind} ")}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _unsupported_text(one: Profile) -> str:
    return ", ".join(f"{name.removeprefix('aten::')} x{times}" for name, times in one.unsupported.items())


def _module_table(costs: ModuleTable) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("module", no_wrap=True)
    table.add_column("class", no_wrap=True)
    for column in ("params", "MACs", "in gates", "elementwise", "activations"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, cost in costs.items():
        values = (cost.params, cost.macs, cost.gate_macs, cost.elementwise, cost.activations)
        table.add_row(
            f"{'  ' * _level(name)}{name.split('.')[-1] or '(network)'}",
            cost.type,
            *(f"{value:,}" for value in values),
        )
    return table


def _render(table: Table) -> str:
    """A rich table as plain text that no terminal width cuts."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=1000, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def _size(text: str) -> tuple[int, ...]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise InputError(f"--input-size {text!r} is not SIDE or HEIGHTxWIDTH in pixels, for instance 224 or 192x320")
    return height, width


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge_sk.profiling",
        description="Compare what networks cost: parameters, MACs (convolutions and matrix products, batch "
        "norm folded), elementwise work, activations.",
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="a zoo name, timm:NAME or torchvision:NAME; with options: sk_shufflenetv2_1.0@kernels=3+5",
    )
    parser.add_argument(
        "--by-module",
        nargs="?",
        type=int,
        const=1,
        metavar="DEPTH",
        help="also the modules of each network, DEPTH levels deep (default 1)",
    )
    parser.add_argument(
        "--input-size", metavar="SIDE", help="side of the image, or HEIGHTxWIDTH (default: each network's)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Compare what networks cost."""
    args = _parser().parse_args(argv)
    from edge_sk.models import create_model

    size = _size(args.input_size) if args.input_size else None
    if args.by_module is not None and args.by_module < 0:
        raise InputError(f"--by-module {args.by_module} is negative; 1 shows the network's children")
    profiles = []
    for name in args.names:
        model = create_model(name)
        shape = (1, 3, *size) if size else None
        profiles.append(dataclasses.replace(profile(model, shape), name=name))
    if args.json:
        print(json.dumps(_record(profiles, args.by_module, argv), indent=2))
        return 0
    print_table(comparison(profiles))
    if args.by_module is not None:
        for one in profiles:
            print(f"\n{one.name}")
            print_table(_module_table(one.by_module(args.by_module)))
    return 0


def print_table(table: Table) -> None:
    """Print a table: in colours on a terminal, whole whatever the width elsewhere."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(table)
    else:
        print(_render(table))


def _record(profiles: Sequence[Profile], depth: int | None, argv: Sequence[str] | None) -> dict[str, Any]:
    from edge_sk.manifest import manifest

    networks = []
    for one in profiles:
        entry = one.to_dict()
        if depth is not None:
            entry["modules"] = {name: dataclasses.asdict(cost) for name, cost in one.by_module(depth).items()}
        networks.append(entry)
    command = ["-m", "edge_sk.profiling", *(sys.argv[1:] if argv is None else argv)]
    return {"networks": networks} | manifest(command)


if __name__ == "__main__":
    sys.exit(main())
