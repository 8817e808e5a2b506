"""What a search chooses from, what its networks are called, and how long their files take."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr

import edge_sk
from edge_sk.attention import gated_units
from edge_sk.costs import read_costs
from edge_sk.errors import InputError, shown
from edge_sk.export.executorch import latency
from edge_sk.export.executorch.pte import lower
from edge_sk.export.network import UNTRAINED, Network, with_statistics
from edge_sk.export.record import Precision
from edge_sk.files import artifact_path, atomic_write
from edge_sk.grafting import NAMED, graft_
from edge_sk.reading import read_yaml, validated
from edge_sk.selective_kernel import UnitSpec, parse_kernels
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.transforms import Preprocessing

PLAIN = "plain"  # the choice of a stage that does not select
# The options of a name that a search chooses beside kernels and places, with what they are where a name has none.
DEFAULTS: dict[str, Any] = {"reduction": UnitSpec.reduction, "min_width": UnitSpec.min_width, "act": "none"}
Value = TypeVar("Value")


def _different(values: list[Value]) -> list[Value]:
    if len(set(values)) < len(values):
        raise ValueError("the same is named twice")
    return values


def _kernels(text: str) -> str:
    if text != "auto" and len(parse_kernels(text)) < 2:
        raise ValueError("a unit selects between at least 2 kernels, for instance 3+5")
    return text


def plain_name(host: str) -> str:
    """The network without selective kernels: ``sk_NAME``'s is ``NAME``; those of other libraries are plain.

    Raises:
        InputError: A name with options, or one whose plain network has no such name.
    """
    if "@" in host or not re.match("sk_|timm:|torchvision:", host):
        raise InputError(
            f"{shown(host)} is no host: give sk_NAME of the zoo, timm:NAME or torchvision:NAME, no options"
        )
    return host.removeprefix("sk_")


Choices = Annotated[list[Value], Field(min_length=1), AfterValidator(_different)]
Size = Annotated[int, Field(ge=1, le=1024)]


class Space(BaseModel):
    """The networks of a search and how they are ranked and measured: any of these fields, in YAML."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    hosts: Choices[str] = []  # names without options, for instance of several widths; []: that of --arch
    stages: Choices[Annotated[int, Field(ge=0, le=9)]] = []  # that may select (grafting.stages); []: all of the hosts
    sk_units: Choices[Literal["stride1", "all", "late"]] = ["stride1"]  # which sites of a stage that selects
    kernels: Choices[Annotated[str, AfterValidator(_kernels)]] = ["auto", "3+5", "3+5+7"]  # of a stage that selects
    reduction: Choices[Size] = [16, 8]  # the unit's r
    min_width: Choices[Size] = [32, 16]  # the unit's L
    act: Choices[str] = ["none"]  # activation in every branch
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10  # of the trainings that rank
    holdout: Annotated[float, Field(gt=0, le=0.9)] = 0.2  # share of the training images that ranks
    precision: Precision = "fp32"  # of the files that are measured
    threads: Annotated[int, Field(ge=1, le=256)] = 1  # of the runtime

    # By host and sk_units, the paths of the sites of each stage.
    _sites: dict[tuple[str, str], dict[int, list[str]]] = PrivateAttr(default_factory=dict)

    def choices(self) -> Mapping[str, Sequence[Any]]:
        """Every parameter of a trial with its values."""
        stages = {f"stage{stage}": [PLAIN, *self.kernels] for stage in self.stages}
        return {"host": self.hosts, **stages} | {name: getattr(self, name) for name in ("sk_units", *DEFAULTS)}

    def singles(self) -> dict[tuple[str, str], dict[str, Any]]:
        """By stage and kernels, networks of which one stage selects; other parameters have their first value."""
        plain = {name: values[0] for name, values in self.choices().items()}
        stages = itertools.product([f"stage{stage}" for stage in self.stages], self.kernels)
        return {(stage, kernels): plain | {stage: kernels} for stage, kernels in stages}

    def name(self, params: Mapping[str, Any]) -> str:
        """The network of a trial's parameters; one network has one name."""
        host = params["host"]
        sites = {place: self._sites[host, place] for place in self.sk_units}
        selecting = [s for s in self.stages if params[f"stage{s}"] != PLAIN and s in sites[params["sk_units"]]]
        if not selecting:
            return plain_name(host)
        chosen = [sites[params["sk_units"]][stage] for stage in selecting]
        place = next(place for place, of in sites.items() if [of.get(stage) for stage in selecting] == chosen)
        kernels = "/".join(f"{stage}:{params[f'stage{stage}']}" for stage in selecting)
        options = {"kernels": kernels, "sk_units": place}
        options |= {name: params[name] for name, default in DEFAULTS.items() if params[name] != default}
        return f"{host}@{','.join(f'{name}={value}' for name, value in options.items())}"


class Start(NamedTuple):
    """A space whose hosts and stages are filled in, and what is known of ``--arch``."""

    space: Space
    default: dict[str, Any]  # the parameters of the network as its name alone gives it, where the space has them
    stage_of: dict[str, int]  # the stage of every site, by its path


def read_space(path: str | None, arch: str) -> Start:
    """Read a space and check it: every value builds a network of every host.

    Raises:
        InputError: No YAML, an unknown field, or a value that cannot be built.
    """
    space = validated(Space, ({} if path is None else read_yaml(path)) or {}, path or "space")
    hosts = space.hosts or [arch]
    sites = {host: _sites(host) for host in dict.fromkeys([arch, *hosts])}
    common = set.intersection(*({site.stage for site in sites[host]} for host in hosts))
    if missing := [stage for stage in space.stages if stage not in common]:
        raise InputError(f"{path}: stages: not every host has a site in stage {missing[0]}; all have {sorted(common)}")
    space = space.model_copy(update={"hosts": hosts, "stages": space.stages or sorted(common)})
    for host, place in itertools.product(sites, space.sk_units):
        found = sorted(filter(NAMED[place], sites[host]), key=lambda site: site.stage or 0)
        by_stage = itertools.groupby(found, key=lambda site: site.stage or 0)
        space._sites[host, place] = {stage: [site.name for site in of] for stage, of in by_stage}
    stage_of = {site.name: site.stage for site in sites[arch]}
    first = {name: values[-1] for name, values in space.choices().items()}  # of a stage, the last is no PLAIN
    changed = [first | {name: value} for name, values in space.choices().items() for value in values]
    for name in dict.fromkeys(map(space.name, changed)):
        edge_sk.create_model(name, num_classes=2)
    by_default = units(default_name(arch))
    places = {stage_of[unit] for unit in by_default}
    for sk_units in space.sk_units:
        params = {f"stage{stage}": "auto" if stage in places else PLAIN for stage in space.stages} | DEFAULTS
        params |= {"host": arch, "sk_units": sk_units}
        known = all(params[name] in values for name, values in space.choices().items())
        if known and units(space.name(params)) == by_default:
            return Start(space, params, stage_of)
    return Start(space, {}, stage_of)


def default_name(arch: str) -> str:
    """A host with selective kernels where it has them by default."""
    return arch if arch.startswith("sk_") else f"{arch}@kernels=auto"


def units(name: str) -> list[str]:
    """Paths of a network's units that select."""
    model = edge_sk.create_model(name, num_classes=2)
    return [*gated_units(model)] if "@" in name or name.startswith("sk_") else []


def _sites(host: str) -> list[Any]:
    found = graft_(edge_sk.create_model(plain_name(host), num_classes=2), where=NAMED["all"], init="random")
    return [site for site, _ in found if site.stage is not None]


class Ruler:
    """Measures the files of networks on this host, in turns with the plain network's, which ``plain`` names.

    ``classes`` and the size of ``data`` are those of all; the files are kept in ``folder``.
    """

    def __init__(self, plain: str, *, classes: int, data: DataRecipe, space: Space, folder: Path) -> None:
        self.plain, self.classes, self.data, self.space, self.folder = plain, classes, data, space, folder
        self.where = f"{latency.this_host()}, {space.precision}, threads={space.threads}"

    def ratios(self, *names: str) -> dict[str, float]:
        """Latency of networks as a share of the plain one's, all taking turns."""
        files = {name: self._file(name) for name in dict.fromkeys([self.plain, *names])}
        found = latency.ratios([*files.values()], threads=self.space.threads)
        return {name: round(ratio, 4) for name, ratio in zip(files, found, strict=True)}

    def _file(self, name: str) -> Path:
        model: Any = edge_sk.create_model(name, num_classes=self.classes).eval()
        images = Preprocessing.of(model.default_cfg, self.data)
        network = Network(arch=name, model=model, weights=UNTRAINED, **images.model_dump())
        file = artifact_path(self.folder, f"{network.stem}_{self.space.precision}", ".pte")
        if not file.exists():
            program = lower(with_statistics(network), precision=self.space.precision).program
            with atomic_write(file) as temporary:
                temporary.write_bytes(bytes(program.buffer))
        return file


class Tables:
    """Adds up what units cost, by tables of the form that ``deploy/unit_costs.py`` writes.

    ``given`` has a ``KERNELS=FILE`` for each of the space's kernels.

    Raises:
        InputError: Kernels without a table, a table that does not fit, or several hosts.
    """

    def __init__(self, given: Iterable[str], start: Start) -> None:
        space, self.stage_of = start.space, start.stage_of
        if len(space.hosts) > 1:
            raise InputError(f"--costs are those of one host, and the space has {', '.join(space.hosts)}")
        files = {kernels: file for kernels, _, file in (text.partition("=") for text in given)}
        if missing := [kernels for kernels in space.kernels if kernels not in files]:
            raise InputError(
                f"--costs {shown(' '.join(given))} has no {missing[0]}=FILE, what units of those kernels cost"
            )
        named = [f"{space.hosts[0]}@kernels=auto,sk_units={place}" for place in space.sk_units]
        paths = sorted(set().union(*map(units, named)))
        self.tables = {kernels: read_costs(files[kernels], paths, "select") for kernels in files}
        self.where = "; ".join(
            sorted({f"{one.where}, {one.precision}, threads={one.threads}" for one in self.tables.values()})
        )

    def ratios(self, *names: str) -> dict[str, float]:
        """Latency of networks as a share of the plain one's."""
        return {name: round(1 + sum(self._share(name, unit) for unit in units(name)), 4) for name in names}

    def _share(self, name: str, unit: str) -> float:
        of_stage = re.search(rf"[=/]{self.stage_of[unit]}:([^/,]+)", name)
        table = self.tables.get(of_stage[1] if of_stage else "auto")
        if table is None:
            raise InputError(f"--costs has no auto=FILE, what the units of {name} cost: add it, or give --budget")
        return table.units[unit]["select"] / table.plain


def front(points: Iterable[tuple[str, float, float]]) -> list[str]:
    """Names of what nothing else beats in both, of (name, latency, accuracy), by latency."""
    names, best = list[str](), -1.0
    for name, _, accuracy in sorted(points, key=lambda point: (point[1], -point[2])):
        if accuracy > best:
            names, best = [*names, name], accuracy
    return names
