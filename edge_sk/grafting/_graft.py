"""The graft itself."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edge_sk import running
from edge_sk.errors import InputError
from edge_sk.grafting import dataflow, eligibility, measure, preserve, structure
from edge_sk.grafting.report import Replaced, Report
from edge_sk.grafting.site import Left, Site, describe
from edge_sk.grafting.unit import Init, make_unit, replace
from edge_sk.selective_kernel import Kernels, SelectiveKernel, UnitSpec


def graft(
    model: nn.Module,
    *,
    kernels: Kernels | Callable[[Site], Kernels | None] | None = None,
    where: Callable[[Site], bool] | None = None,
    init: Init = "preserve",
    reduction: int = 16,
    min_width: int = 32,
    select: bool = True,
    act: str | Callable[..., nn.Module] | None = None,
    input_size: int | Sequence[int] | None = None,
    images: Tensor | None = None,
) -> tuple[nn.Module, Report]:
    """Give a network selective kernels, and keep what it has learned.

    Every depthwise or grouped ``k x k`` convolution (``k >= 3``) with batch normalisation behind it becomes a
    :class:`~edge_sk.SelectiveKernel` of linear branches; an activation behind them stays where it is. Sites are found
    by following tensors through the network.

    Args:
        model: Any network that takes one image batch; it is not changed.
        kernels: Branches of every unit, for instance ``"3+5"``, or a function from a site to its branches. ``None``:
            the site's own kernel and a dilated 3x3 that sees two pixels more.
        where: Which sites, see :mod:`edge_sk.grafting.where`; ``None``: all.
        init: ``"preserve"``: the network computes what it did before (see :mod:`edge_sk.grafting.preserve`);
            ``"random"``: fresh units with the paper's initialisation.
        reduction: ``r``.
        min_width: ``L``.
        select: ``False``: sum the branches instead of selecting.
        act: Activation in every branch, as in the paper's networks, for instance ``"relu"``; ``None``: linear branches.
            With one, ``"preserve"`` starts near the network, not exactly as it.
        input_size: ``(C, H, W)``, ``(N, C, H, W)`` or the side of a square image, to measure at; ``None``: that of
            ``images``, of the model's ``default_cfg``, or 3x224x224.
        images: A batch of real images as the network takes them, to measure on; ``None``: two photographs.

    Returns:
        A copy with selective kernels, in the mode, on the device and in the type of the model; and the report.

    Raises:
        InputError: Nothing to graft, a model that cannot be copied or run, or one whose output would not be kept.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3), nn.ReLU())
        >>> grafted, report = graft(network, input_size=32)
        >>> len(report.replaced), report.difference < 1e-6
        (1, True)
    """
    _check(model, where=where, init=init)
    spec = UnitSpec(kernels=kernels, reduction=reduction, min_width=min_width, select=select, act=act)
    shape = _shape(model, input_size, images)
    grafted = running.copied(model)
    noise = running.random_images(grafted, (2, *shape))
    real = running.photographs(grafted, shape) if images is None else images.to(noise)
    with running.evaluating(grafted):
        before, before_real = running.outputs(grafted, noise), running.outputs(grafted, real)
    done = _operate(grafted, noise, spec, where=where, init=init)
    with running.evaluating(grafted):
        after, differences = measure.site_differences(grafted, noise, done.units)
        after_real, differences_real = measure.site_differences(grafted, real, done.units)
    report = Report(
        model=type(model).__name__,
        untraced=done.untraced,
        init=init,
        input_size=tuple(shape),
        replaced=[
            Replaced(
                name=site.name,
                found_by=site.found_by,
                conv=describe(site.conv),
                kernels="+".join(map(str, unit.kernels)),
                stage=site.stage,
                resolution=site.resolution,
                exact=init == "preserve" and preserve.is_exact(unit, site),
                difference=difference,
                difference_real=difference_real,
            )
            for (site, unit), difference, difference_real in zip(done.units, differences, differences_real, strict=True)
        ],
        left=done.left,
        params=(_params(model), _params(grafted)),
        macs=_macs(model, grafted, shape),
        difference=_difference(before, after),
        difference_real=_difference(before_real, after_real),
        images="two photographs" if images is None else f"{len(real)} images given",
        same_choice=_same_choice(before_real, after_real),
    )
    if report.init == "preserve" and report.exact:
        _check_kept(model, grafted, noise, report.difference)
        _check_kept(model, grafted, real, report.difference_real)
    return grafted, report


def graft_(
    model: nn.Module,
    spec: UnitSpec | None = None,
    *,
    where: Callable[[Site], bool] | None = None,
    init: Init = "preserve",
    input_size: int | Sequence[int] | None = None,
) -> list[tuple[Site, SelectiveKernel]]:
    """:func:`graft` into the model itself, without the report.

    Args:
        model: Changed in place.
        spec: What every unit is; ``None``: the defaults of :class:`~edge_sk.UnitSpec`.
        where: Which sites.
        init: How units start.
        input_size: Of the images that the model runs on once.

    Returns:
        The sites replaced, each with its unit.

    Raises:
        InputError: As :func:`graft`, but for a changed output, which is not measured.
    """
    _check(model, where=where, init=init)
    images = running.random_images(model, (2, *_shape(model, input_size, None)))
    return _operate(model, images, spec or UnitSpec(), where=where, init=init).units


@dataclasses.dataclass(frozen=True)
class _Operation:
    """What was done to a model.

    Args:
        untraced: Why torch.fx could not follow the whole model; ``None`` if it could.
        units: The sites replaced, each with its unit.
        left: Grouped convolutions that were not.
    """

    untraced: str | None
    units: list[tuple[Site, SelectiveKernel]]
    left: list[Left]


def _operate(
    model: nn.Module, images: Tensor, spec: UnitSpec, *, where: Callable[[Site], bool] | None, init: Init
) -> _Operation:
    """Graft in place; the model runs once on ``images``."""
    with running.evaluating(model):
        untraced, sites, left = _find(model)
        sites, unused = _observed(model, images, sites)
    left = [*left, *unused]
    chosen = [site for site in sites if where is None or where(site)]
    left += [Left(site.name, describe(site.conv), f"where={_name(where)}") for site in sites if site not in chosen]
    if not chosen:
        raise InputError(_nothing(model, left))
    # In the model's own mode, which units take over.
    units = [(site, make_unit(site, spec, init)) for site in chosen]
    for site, unit in units:
        replace(model, site, unit)
        site.conv.eval()  # taken out, and kept to compare with
    return _Operation(untraced, units, left)


def _check(model: nn.Module, *, where: object, init: str) -> None:
    """Refuse what cannot be grafted before anything is done."""
    if not isinstance(model, nn.Module):
        raise InputError(f"graft takes a network (nn.Module), got {type(model).__name__}")
    wrappers = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
    name = type(model).__name__
    if name in wrappers:
        raise InputError(f"the model is wrapped in {name}: graft model.{wrappers[name]} and wrap the result")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the model is TorchScript, which cannot be changed: graft the Python module it came from")
    if init not in ("preserve", "random"):
        raise InputError(f"init={init!r} is not known; use 'preserve' (keep the function) or 'random' (the paper's)")
    if where is not None and not callable(where):
        raise InputError(
            f"where={where!r} is not a predicate over sites; for instance edge_sk.grafting.depthwise, "
            "edge_sk.grafting.stages(2, 3), or lambda site: site.channels >= 64"
        )
    for path, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InputError(f"{path} is lazy and has no shape yet: run the model once, then graft it")
        if parameter.is_meta and init == "preserve":
            raise InputError(f"{path} has no values to preserve (meta device): load the weights, then graft")


def _shape(model: nn.Module, input_size: int | Sequence[int] | None, images: Tensor | None) -> tuple[int, ...]:
    if images is not None and (not isinstance(images, Tensor) or images.ndim != 4 or not len(images)):
        given = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images is no batch (N, C, H, W) of images: {given}")
    if images is not None and input_size is None:
        return tuple(images.shape[1:])
    return running.input_shape(model, input_size)[1:]


def _find(model: nn.Module) -> tuple[str | None, list[Site], list[Left]]:
    """Sites by dataflow; by structure those in modules that cannot be traced."""
    untraced = None
    for heed_marks in (False, True):
        try:
            sites, left = dataflow.find(model, heed_marks=heed_marks)
            break
        except Exception as error:
            # Tracing runs the model's own Python code, which can raise anything.
            untraced = untraced or f"{type(error).__name__}: {running.first_line(error)}"[:200]
    else:
        return untraced, *structure.find(model)
    unseen = {item.name for item in left if item.reason == dataflow.UNSEEN}
    more_sites, more_left = structure.find(model)
    left = [item for item in left if item.name not in unseen] + [item for item in more_left if item.name in unseen]
    sites += [site for site in more_sites if site.name in unseen]
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    return untraced, sorted(sites, key=lambda site: order[site.name]), left


def _observed(model: nn.Module, images: Tensor, sites: list[Site]) -> tuple[list[Site], list[Left]]:
    """Run the model: note resolutions, and leave out sites that the run contradicts."""
    watched = [module for site in sites for module in (site.conv, site.norm_module)]
    seen = measure.observe(model, images, watched)
    kept: list[Site] = []
    left: list[Left] = []
    for site in sites:
        conv, norm = seen[id(site.conv)], seen[id(site.norm_module)]
        reason = None
        if conv.calls == 0:
            reason = "it does not run on this input"
        elif conv.calls > 1 or norm.calls > 1:
            reason = f"it runs {max(conv.calls, norm.calls)} times in one forward"
        elif site.found_by == "structure" and norm.given is not conv.returned:
            reason = "the batch normalisation registered behind it reads another tensor"
        if reason:
            left.append(Left(site.name, describe(site.conv), reason))
            continue
        assert conv.resolution is not None
        stage = round(math.log2(images.shape[2] / conv.resolution[0])) - 1
        kept.append(dataclasses.replace(site, resolution=conv.resolution, stage=stage))
    return kept, left


def _nothing(model: nn.Module, left: Sequence[Left]) -> str:
    grafted = sum(eligibility.is_selective_kernel(module) for module in model.modules())
    if grafted and not left:
        return f"{type(model).__name__} has {grafted} selective kernels already, and nothing else to graft"
    if not left:
        return (
            f"{type(model).__name__} has no grouped or depthwise convolution larger than 1x1; selective kernels stand "
            "for those with batch normalisation behind them"
        )
    reasons = "; ".join(f"{item.name} ({item.conv}): {item.reason}" for item in left[:3])
    more = f"; and {len(left) - 3} more" if len(left) > 3 else ""
    return f"nothing to graft in {type(model).__name__}: {reasons}{more}"


def _name(where: object) -> str:
    return getattr(where, "__name__", None) or repr(where)


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _macs(before: nn.Module, after: nn.Module, shape: Sequence[int]) -> tuple[int, int] | None:
    from edge_sk.profiling import profile

    try:
        return profile(before, (1, *shape)).macs, profile(after, (1, *shape)).macs
    except InputError:
        return None  # scripted parts cannot be counted; the graft itself does not depend on it


def _same_choice(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    if len(before) != 1 or before[0].ndim != 2 or before[0].shape[1] < 2:
        return None
    return float((before[0].argmax(1) == after[0].argmax(1)).float().mean())


def _difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    """See :func:`edge_sk.running.difference`; ``None`` where there is no floating-point value to compare."""
    return running.difference(before, after) if any(tensor.numel() for tensor in before) else None


def _check_kept(model: nn.Module, grafted: nn.Module, images: Tensor, difference: float | None) -> None:
    """Refuse a graft that changed the network although every unit has its site's function."""
    if difference is None:
        return
    # Deep networks can amplify rounding that far, those of low precision always do: compare where rounding is smaller.
    for dtype in (torch.float32, torch.float64):
        if difference <= measure.TOLERANCE:
            return
        if torch.finfo(images.dtype).eps <= torch.finfo(dtype).eps:
            continue
        before, after = copy.deepcopy(model).to(dtype), copy.deepcopy(grafted).to(dtype)
        with running.evaluating(before), running.evaluating(after):
            images = images.to(dtype)
            difference = running.difference(running.outputs(before, images), running.outputs(after, images))
    if math.isnan(difference):
        raise InputError(
            f"the output of {type(model).__name__} is not finite (nan or inf) before or after the graft, so nothing "
            "shows that it was kept: look at its weights and, if you gave some, at the images"
        )
    if difference > measure.TOLERANCE:
        raise InputError(
            f"the output of {type(model).__name__} changed by {difference:.1e} although every site kept its function: "
            "either it is random in eval mode, or its forward uses a replaced module in a way that was not seen; leave "
            "those out with where="
        )
