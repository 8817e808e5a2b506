"""The graft: find the sites, choose among them, replace them, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from edge_sk import running
from edge_sk.errors import InputError, shown
from edge_sk.grafting import eligibility, finding, measure, preserve
from edge_sk.grafting.budget import affordable
from edge_sk.grafting.report import Replaced, Report
from edge_sk.grafting.site import Site, Skipped, describe
from edge_sk.grafting.unit import Init, make_unit, replace
from edge_sk.profiling import profile
from edge_sk.selective_kernel import Kernels, SelectiveKernel, UnitSpec

if TYPE_CHECKING:
    from edge_sk.costs import Costs


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
    budget: float | None = None,
    costs: Costs | Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> tuple[nn.Module, Report]:
    """Give a network selective kernels, and keep what it has learned.

    Every depthwise or grouped convolution larger than 1x1 becomes a :class:`~edge_sk.SelectiveKernel` of linear
    branches. They take over a batch normalisation behind the convolution, and have a bias where there is none; whatever
    else follows stays where it is. Sites are found by following tensors through the network.

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
            With ReLU or a leaky one, ``"preserve"`` starts near the network; with another it can start far from it, see
            the report.
        input_size: ``(C, H, W)``, ``(N, C, H, W)`` or the side of a square image, to measure at; ``None``: that of
            ``images``, of the model's ``default_cfg``, or 3x224x224.
        images: A batch of real images as the network takes them, to measure on; ``None``: two photographs.
        budget: Latency to stay within, as a share of the plain network's: of the chosen sites only as many as fit,
            those of the middle stages first (:mod:`edge_sk.grafting.budget`). ``None``: all.
        costs: What each unit costs on the device, which ``budget`` needs: the file that ``deploy/unit_costs.py`` wrote
            for the network with every site grafted, or its values.

    Returns:
        A copy with selective kernels, in the mode, on the device and in the type of the model; and the report.

    Raises:
        InputError: Nothing to graft, a model that cannot be copied or run, or one whose output would not be kept; or
            the budget pays for no site, or the costs do not fit.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3), nn.ReLU())
        >>> grafted, report = graft(network, input_size=32)
        >>> len(report.replaced), report.difference < 1e-6
        (1, True)
    """
    _check(model, where=where, init=init)
    if images is not None and (not isinstance(images, Tensor) or images.ndim != 4 or not len(images) or images.is_meta):
        given = f"shape {tuple(images.shape)} on {images.device}" if isinstance(images, Tensor) else shown(images)
        raise InputError(f"images is no batch (N, C, H, W) of images: {given}")
    if input_size is None and images is not None:
        input_size = images.shape
    shape = running.input_shape(model, input_size)[1:]
    grafted = running.copied(model)
    noise = running.random_images(grafted, (2, *shape))
    spec = UnitSpec(kernels=kernels, reduction=reduction, min_width=min_width, select=select, act=act)
    units, skipped, untraced = _operate(grafted, noise, spec, where=where, init=init, budget=budget, costs=costs)

    real = running.photographs(model, shape) if images is None else images.to(noise)
    on_noise, on_real = (measure.compare(model, grafted, batch, units) for batch in (noise, real))
    report = Report(
        model=type(model).__name__,
        untraced=untraced,
        init=init,
        input_size=shape,
        replaced=[
            Replaced(
                name=site.name,
                found_by=site.found_by,
                conv=describe(site.conv),
                norm=site.norm,
                kernels="+".join(map(str, unit.kernels)),
                stage=site.stage,
                resolution=site.resolution,
                exact=init == "preserve" and preserve.is_exact(unit, site),
                difference=difference,
                difference_real=difference_real,
            )
            for (site, unit), difference, difference_real in zip(units, on_noise.sites, on_real.sites, strict=True)
        ],
        left=skipped,
        params=(_params(model), _params(grafted)),
        macs=_macs(model, grafted, shape),
        difference=on_noise.network,
        difference_real=on_real.network,
        images="two photographs" if images is None else f"{len(real)} images given",
        same_choice=on_real.same_choice,
    )
    if report.exact:
        measure.check_kept(model, grafted, noise, report.difference)
        measure.check_kept(model, grafted, real, report.difference_real)
    return grafted, report


def graft_(
    model: nn.Module,
    spec: UnitSpec | None = None,
    *,
    where: Callable[[Site], bool] | None = None,
    init: Init = "preserve",
    input_size: int | Sequence[int] | None = None,
) -> list[tuple[Site, SelectiveKernel]]:
    """:func:`graft` into the model itself, which runs once; what changes in its output is not measured.

    Returns:
        The sites replaced, each with its unit.

    Raises:
        InputError: Nothing to graft, or a model that cannot be run.
    """
    _check(model, where=where, init=init)
    images = running.random_images(model, (2, *running.input_shape(model, input_size)[1:]))
    return _operate(model, images, spec or UnitSpec(), where=where, init=init)[0]


def _operate(
    model: nn.Module,
    images: Tensor,
    spec: UnitSpec,
    *,
    where: Callable[[Site], bool] | None,
    init: Init,
    budget: float | None = None,
    costs: Any = None,
) -> tuple[list[tuple[Site, SelectiveKernel]], list[Skipped], str | None]:
    """Graft in place; the model runs once on ``images``.

    Returns:
        The sites replaced, each with its unit; the grouped convolutions that were not; and why torch.fx could not
        follow the whole model.
    """
    with running.evaluating(model):
        sites, skipped, untraced = finding.find(model)
        sites, contradicted = finding.confirm(model, images, sites)
    chosen = [site for site in sites if where is None or where(site)]
    name = getattr(where, "__name__", None) or repr(where)
    others = [
        Skipped(site.name, describe(site.conv), f"not chosen by where={name}") for site in sites if site not in chosen
    ]
    skipped += contradicted + others
    if not chosen:
        raise InputError(_nothing(model, skipped))
    paid = affordable(chosen, budget, costs)
    skipped += [Skipped(s.name, describe(s.conv), f"beyond budget={budget}") for s in chosen if s not in paid]
    # In the model's own mode, which units take over.
    units = [(site, make_unit(site, spec, init)) for site in paid]
    for site, unit in units:
        replace(model, site, unit)
        site.conv.eval()  # no part of the model any more, but compared with
    return units, skipped, untraced


def _check(model: nn.Module, *, where: object, init: str) -> None:
    """Refuse what cannot be grafted before anything is done."""
    if not isinstance(init, str) or init not in ("preserve", "random"):
        raise InputError(f"init={shown(init)} is not known; use 'preserve' (the function) or 'random' (the paper's)")
    running.check_network(model, "graft", meta=init == "random")
    wrappers = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
    name = type(model).__name__
    if name in wrappers:
        raise InputError(f"the model is wrapped in {name}: graft model.{wrappers[name]} and wrap the result")
    if where is not None and not callable(where):
        raise InputError(
            f"where={shown(where)} is not a predicate over sites; for instance edge_sk.grafting.depthwise, "
            "edge_sk.grafting.stages(2, 3), or lambda site: site.channels >= 64"
        )


def _nothing(model: nn.Module, skipped: Sequence[Skipped]) -> str:
    """Why there is nothing to graft."""
    name = type(model).__name__
    if skipped:
        reasons = "; ".join(f"{item.name} ({item.conv}): {item.reason}" for item in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        return f"nothing to graft in {name}: {reasons}{more}"
    if grafted := sum(eligibility.is_selective_kernel(module) for module in model.modules()):
        return f"{name} has {grafted} selective kernels already, and nothing else to graft"
    return f"{name} has no grouped or depthwise convolution larger than 1x1, which selective kernels replace"


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _macs(before: nn.Module, after: nn.Module, shape: Sequence[int]) -> tuple[int, int] | None:
    try:
        return profile(before, (1, *shape)).macs, profile(after, (1, *shape)).macs
    except InputError:
        return None  # scripted parts cannot be counted; the graft itself does not depend on it
