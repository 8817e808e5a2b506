"""The record of an exported file, JSON beside it: what it is, what was verified, what it costs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_sk.errors import InputError
from edge_sk.export.parity import Parity, Threshold
from edge_sk.files import file_digest, write_text
from edge_sk.reading import read_json, validated

CORE_ML = "Core ML on macOS"
"""The first words of ``parity.runtime`` where Core ML itself computed the outputs."""

Format = Literal["pte", "mlpackage"]
Precision = Literal["fp32", "fp16", "int8", "palette6"]

# Bounds keep pages free of divisions by zero and of infinities. No network comes near the upper ones.
Count = Annotated[int, Field(ge=0, le=10**15)]
Positive = Annotated[int, Field(ge=1, le=10**15)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Milliseconds = Annotated[float, Field(ge=1e-9, le=1e15)]
Size = Annotated[list[Positive], Field(min_length=4, max_length=4)]


class Part(BaseModel):
    """A part of a record or report: an unknown field, a NaN or an infinity is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class InputContract(Part):
    """What the application must feed: everything else (normalisation) is inside the file."""

    shape: Size = Field(description="(N, C, H, W)")
    layout: str = Field(default="NCHW, RGB, float in [0, 1]", description="Order, colour and range of the values")
    mean: list[Number] = Field(description="Subtracted inside the file, per channel, of values in [0, 1]")
    std: list[Annotated[float, Field(gt=0, le=1e15)]] = Field(description="Divided by inside the file, per channel")
    interpolation: str = Field(description="Resampling that the parity images were resized with")
    crop_pct: float = Field(gt=0, le=1, description="Share of the resized image that the centre crop keeps")


class Leftover(Part):
    """Operators of one kind that the backend did not take."""

    operator: str
    count: Positive
    why: str
    remedy: str


class Delegation(Part):
    """How much of the graph one backend runs."""

    delegates: Count
    operators_delegated: Count
    left: list[Leftover]
    in_float: list[str] = Field(
        default_factory=list,
        description="Operators of an int8 file that compute in float inside the delegate",
    )

    @property
    def whole(self) -> bool:
        """One delegate and nothing left outside."""
        return self.delegates == 1 and not self.left


class MLProgram(Part):
    """The Core ML program in the package, as read back from the file."""

    target: str = Field(description="Oldest system, by coremltools' name; iOS16 stands for macOS 13 as well")
    specification_version: Count
    operators: dict[str, Count] = Field(description="How often each operator runs; stored constants not counted")
    max_rank: Count = Field(description="Most axes of any value; Core ML allows 5")
    largest_half: Amount | None = Field(
        description="Largest magnitude on the parity images of a value in half precision, which ends at 65504"
    )
    compute_units: dict[str, dict[str, Count]] | None = Field(
        default=None,
        description="Per device: operators by the unit that Core ML plans for them (a count is no share of time)",
    )


class OutputParity(Part):
    """One of several outputs against the eager model's."""

    max_abs: Amount | None
    relative: Amount | None
    sqnr_db: Number | None
    top1_agreement: Share | None

    @classmethod
    def of(cls, parity: Parity) -> OutputParity:
        """From a measurement."""
        return cls(**{name: _finite(getattr(parity, name)) for name in cls.model_fields})


class ParityEvidence(Part):
    """The exported file against the eager model, on images."""

    max_abs: Amount | None
    relative: Amount | None
    sqnr_db: Number | None
    top1_agreement: Share | None = Field(
        description="Share of the images, or of their pixels, in the same first class; null where no output has classes"
    )
    accuracy_loss: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=None,
        description="Share of the images: by the record's accuracy, or where labels are not known the loss to expect: "
        "by how much likelier the model finds its own class than the file's",
    )
    images: Positive
    data: str = Field(description="Which images")
    runtime: str = Field(description="What executed the file")
    arithmetic: str | None = Field(
        default=None,
        description="What the host computed in: fp32, int8, 'int8, in part fp32', fp16 (sums too) or 'fp32, stored as "
        "fp16'; null: unknown",
    )
    outputs: dict[str, OutputParity] = Field(
        default_factory=dict, description="Of several outputs each by its name; the values above are the worst of them"
    )
    threshold_relative: Amount | None
    threshold_sqnr_db: Number
    threshold_top1_agreement: Share | None
    threshold_accuracy_loss: Number | None = None
    accepted: list[str] = Field(
        default_factory=list, description="Demands that the command replaced (--accept); the thresholds have them"
    )

    @classmethod
    def of(cls, parity: Parity, threshold: Threshold, **context: Any) -> ParityEvidence:
        """Join a measurement, what was demanded of it, and where it was made: ``context`` is the other fields."""
        limits = {f"threshold_{name}": value for name, value in dataclasses.asdict(threshold).items()}
        measured = {name: _finite(value) for name, value in dataclasses.asdict(parity).items()}
        return cls(**measured, **limits, **context)


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: ``None`` says that the output was not finite."""
    return value if value is not None and math.isfinite(value) else None


class Accuracy(Part):
    """Top-1 accuracy of the file and of the model it came from, on the same images."""

    top1: Share
    eager_top1: Share
    images: Positive
    data: str


class Latency(Part):
    """One measurement of the file's speed."""

    threads: Count = Field(description="0 where the system decides (Core ML)")
    p50_ms: Milliseconds
    p90_ms: Milliseconds
    min_ms: Milliseconds
    mean_ms: Milliseconds
    round_p50_ms: list[Milliseconds] = Field(
        default_factory=list, description="Median of each round: how far they lie apart is the noise of p50_ms"
    )
    runs: Positive = Field(description="Timed forwards, over all rounds")
    rounds: Positive = Field(description="Fresh processes, interleaved with those of the other files")
    load_ms: Amount = Field(
        description="Median over rounds: load the program and its method, the runtime running already"
    )
    peak_memory_mb: Amount | None = Field(
        description="How much the resident memory of a process grows at most while it loads and runs the file"
    )
    where: str = Field(description="'host latency' and the CPU, or the device's name")
    runtime: str
    date: str

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]], **context: Any) -> Latency:
        """Summarize the milliseconds of each round's forwards; ``context`` is the other fields."""
        ordered = sorted(itertools.chain.from_iterable(rounds))
        return cls(
            p50_ms=round(statistics.median(ordered), 4),
            p90_ms=round(ordered[math.ceil(0.9 * len(ordered)) - 1], 4),
            min_ms=round(ordered[0], 4),
            mean_ms=round(statistics.fmean(ordered), 4),
            round_p50_ms=[round(statistics.median(one), 4) for one in rounds],
            runs=len(ordered),
            rounds=len(rounds),
            **context,
        )


class OperatorTime(Part):
    """What one kind of operator takes in one forward."""

    name: str = Field(description="The backend's or the portable kernel's name")
    kind: str = Field(description="convolution, elementwise, pooling, data movement, or outside the delegate")
    calls: Positive = Field(description="In one forward")
    p50_ms: Amount = Field(description="Sum over its calls of the median time")
    share: Share = Field(description="Of the sum over all operators")


class Trace(Part):
    """Where the time of a forward goes; tracing itself takes time, so the sum is not the latency."""

    threads: Count
    operators: list[OperatorTime] = Field(description="Slowest first")
    where: str = Field(description="As in a latency")
    runtime: str
    date: str


Measurement = TypeVar("Measurement", Latency, Trace)


class Record(Part):
    """Everything known about one exported file."""

    schema_version: Literal[1] = 1
    arch: str
    file: str = Field(pattern=r"^[^/\\\x00]+$")
    format: Format
    backend: str
    precision: Precision
    weights: str = Field(description="The run folder or pretrained tag, or 'untrained'")
    weights_sha256: str | None = Field(
        None, description="Of their names, types, shapes and values; null in older records"
    )
    training: str | None = Field(
        None, description="That the training of a run was not finished, or is not known to be; null where it was"
    )
    num_classes: Positive | None = Field(description="null where no output chooses a class")
    outputs: dict[str, list[Positive]] = Field(
        default_factory=dict, description="Name and shape of each output for one image, in the file's order"
    )
    labels: list[str] | None
    softmax: bool
    input: InputContract
    params: Positive
    macs: Positive = Field(description="Multiply-accumulates of convolutions and linear layers, batch norm folded")
    activations: Count
    size_bytes: Positive
    sha256: str | None = Field(
        None, description="Of the file; of a package, which is a folder, that of its files (edge_sk.files.file_digest)"
    )
    rewrites: list[str] = Field(default_factory=list, description="Steps of reparameterize that applied")
    export_seconds: Amount | None = None
    delegation: Delegation | None = Field(None, description="None where the format has no delegates")
    program: MLProgram | None = Field(None, description="Of an mlpackage")
    parity: ParityEvidence | None = None
    accuracy: Accuracy | None = None
    latency: list[Latency] = Field(default_factory=list)
    traces: list[Trace] = Field(default_factory=list, description="Time per operator, where it was traced")
    notes: list[str] = Field(default_factory=list, description="What was not verified, and why")
    manifest: dict[str, Any] = Field(
        description="edge_sk.manifest.manifest(): command, versions, commit, host, date; from deploy/report.py also "
        "made_from, a digest of the network, the code and the packages"
    )

    @model_validator(mode="after")
    def _lengths_fit(self) -> Record:
        channels, given = self.input.shape[1], [len(self.input.mean), len(self.input.std)]
        if not {*given} <= {1, channels}:
            raise ValueError(f"input.mean and input.std have {given} values for {channels} channels")
        if self.labels is not None and len(self.labels) != self.num_classes:
            raise ValueError(f"labels has {len(self.labels)} names for {self.num_classes} classes")
        return self

    @property
    def maps(self) -> str:
        """The outputs of a network that is no classifier, as ``"out 1x21x96x96, aux 1x21x96x96"``; else nothing."""
        shapes = [f"{name} {'x'.join(map(str, shape))}" for name, shape in self.outputs.items()]
        return "" if [*self.outputs] == ["logits"] else ", ".join(shapes)

    def to_json(self) -> str:
        """The text of the file."""
        return self.model_dump_json(indent=2) + "\n"

    def add_latency(self, *measured: Latency) -> None:
        """Add measurements; each takes the place of an older one of the same threads, device and runtime."""
        self.latency = newest([*self.latency, *measured])

    def keep_measurements(self, artifact: str | os.PathLike[str]) -> None:
        """Take over what the older record of the same bytes measured: another export keeps a device's numbers."""
        with contextlib.suppress(InputError):
            older = read_record(record_path(artifact))
            if older.sha256 is not None and older.sha256 == self.sha256:
                self.latency, self.traces = older.latency, older.traces
                by_core_ml, again = (
                    proof is not None and proof.runtime.startswith(CORE_ML) for proof in (older.parity, self.parity)
                )
                if by_core_ml and not again:
                    self.parity, self.accuracy, self.notes = older.parity, older.accuracy, older.notes
                if self.program is not None and older.program is not None:
                    self.program.compute_units = older.program.compute_units


def newest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """The newest measurement of each number of threads, device and runtime."""
    by_date = sorted(measurements, key=lambda one: one.date)
    return list({(one.threads, one.where, one.runtime): one for one in by_date}.values())


def record_path(artifact: str | os.PathLike[str]) -> Path:
    """Where the record of a file lies: beside it, ``NAME.pte.json``."""
    return Path(f"{Path(artifact)}.json")


def write_record(artifact: str | os.PathLike[str], record: Record) -> Path:
    """Write the record beside its file, whole or not at all."""
    path = record_path(artifact)
    write_text(path, record.to_json())
    return path


def record_of(artifact: str | os.PathLike[str]) -> Record:
    """Read the record beside a file, which must be the file that it describes.

    Raises:
        InputError: As :func:`read_record`, or the file has changed since; records without a digest fit any file.
    """
    path = record_path(artifact)
    record = read_record(path)
    if record.sha256 not in (None, file_digest(artifact)):
        raise InputError(
            f"{artifact} is not the file that {path.name} describes: it is damaged, or another one; copy or export it "
            "again"
        )
    return record


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read a record; an ``InputError`` names the file and what is wrong with it."""
    content = read_json(path, missing=f"no record at {path}; edge-sk export writes one beside each file")
    return validated(Record, content, f"record {path}")
