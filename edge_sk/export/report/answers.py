"""The questions people open a report with, answered in plain words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from edge_sk.export.network import UNTRAINED
from edge_sk.export.record import Record
from edge_sk.export.report.fronts import Metric, default_metric, front
from edge_sk.export.report.model import Report, file_name, network_name
from edge_sk.export.report.pairs import Pair, pairs
from edge_sk.export.report.settings import Setting, difference_noise_ms, latency_in, settings
from edge_sk.export.report.verdicts import parity_mark


@dataclasses.dataclass(frozen=True)
class Answer:
    """A question, its answer in a few words, and what it rests on."""

    question: str
    answer: str
    because: str


def answers(report: Report) -> list[Answer]:
    """Smallest, fastest, on the front, does SK pay, can the files be trusted."""
    records = report.records
    setting = next(iter(settings(records)), None)
    metric = default_metric(records, setting)
    return [
        _smallest(records),
        _fastest(records, setting),
        _on_front(records, setting, metric),
        _sk_pays(records, setting, metric),
        _trust(report),
    ]


def _smallest(records: Sequence[Record]) -> Answer:
    least = min(records, key=lambda r: r.size_bytes)
    lean = min(records, key=lambda r: r.params)
    also = f"Fewest parameters: {network_name(lean)}, {lean.params / 1e6:.2f} million."
    return Answer("Which file is smallest?", f"{file_name(least)}: {least.size_bytes / 1e6:.2f} MB", also)


def _fastest(records: Sequence[Record], setting: Setting | None) -> Answer:
    question = "Which is fastest?"
    timed = sorted(
        ((one, record) for record in records if (one := latency_in(record, setting))), key=lambda t: t[0].p50_ms
    )
    if not timed or setting is None:
        return Answer(question, "Not measured", "No record holds a latency.")
    (best, record), *others = timed
    place = "this computer, not on a phone" if setting.is_host else setting.where
    because = f"Median on {place}, {setting.thread_text}."
    full = next(((one, r) for one, r in others if (r.precision, r.format) == ("fp32", "pte")), None)
    if full:
        because += f" Fastest in fp32: {network_name(full[1])}, {full[0].p50_ms:.2f} ms."
    close = [file_name(r) for one, r in others if one.p50_ms - best.p50_ms <= difference_noise_ms(one, best)]
    if close:
        because += f" Not told apart from it, within the noise: {', '.join(close)}."
    return Answer(question, f"{file_name(record)}: {best.p50_ms:.2f} ms", because)


def _on_front(records: Sequence[Record], setting: Setting | None, metric: Metric) -> Answer:
    question = "Which are on the Pareto front?"
    names = ", ".join(file_name(records[index]) for index in front(records, setting, metric))
    if not names:
        return Answer(question, "Not measured", "A front needs latencies.")
    if metric.more_is_better:
        because = "No other file is both faster and more accurate, as measured: differences within the noise count too."
    else:
        because = (
            "No other file is both faster and leaner in MACs. Cost only: not two files have both a latency and an "
            "accuracy, so this does not say which network recognises better."
        )
    return Answer(question, names, because)


def _sk_pays(records: Sequence[Record], setting: Setting | None, metric: Metric) -> Answer:
    question = "Does SK pay here?"
    found = [pair for pair in pairs(records, setting) if pair.added == "selective kernels"]
    if not found:
        return Answer(question, "Not asked", "No network is here both with and without selective kernels.")
    # Without the rounding of int8, and where latency is known.
    pair = min(found, key=lambda p: (p.latency is None, p.changed.format != "pte", p.changed.precision != "fp32"))
    costs = (
        f"{network_name(pair.changed)} against {network_name(pair.plain)} ({pair.changed.precision} "
        f".{pair.changed.format}): parameters {pair.params:+.1%}, MACs {pair.macs:+.1%}, {_latency_text(pair)}"
    )
    if pair.accuracy is None:
        return Answer(
            question,
            "Its cost is known, its gain was not measured",
            f"{costs}. Accuracy decides, and these files have none: give trained run folders with --checkpoint.",
        )
    gain = f"{costs}, accuracy {pair.accuracy.value:+.2f} points (noise {pair.accuracy.noise:.2f})."
    if pair.accuracy.value <= pair.accuracy.noise:
        return Answer(question, "Not shown: its gain is within the noise", gain)
    if pair.latency is not None and not any(pair.changed is records[i] for i in front(records, setting, metric)):
        off = "It is not on the front of latency against accuracy."
        return Answer(question, "It gains, and another network gives more for the time", f"{gain} {off}")
    return Answer(question, "Yes: it gains accuracy beyond the noise", f"{gain} One training of each, no repeats.")


def _latency_text(pair: Pair) -> str:
    growth = pair.latency_ms
    if pair.latency is None or growth is None:
        return "latency not measured"
    noise = "within the noise of" if abs(growth.value) <= growth.noise else "noise"
    return f"latency {pair.latency:+.1%} ({growth.value:+.2f} ms, {noise} {growth.noise:.2f})"


def _trust(report: Report) -> Answer:
    records = report.records
    counts = Counter(parity_mark(record).level for record in records)
    said = [f"{counts['good']} of {len(records)} reach the full demands"]
    said += [
        f"{counts[level]} {what}"
        for level, what in (
            ("partial", "only weak ones (untrained weights)"),
            ("unknown", "were not run"),
            ("bad", "differ"),
        )
        if counts[level]
    ]
    because = f"Each file was run on real images and held against the network in PyTorch: {', '.join(said)}."
    if report.failures:
        because += f" {len(report.failures)} wanted could not be made or measured: see below."
    if any(record.weights == UNTRAINED for record in records):
        because += " Untrained networks are here for their cost; do not ship them."
    if counts["bad"]:
        answer = "No: some files compute something else"
    elif counts["unknown"]:
        answer = "Those that were run"
    elif counts["partial"]:
        answer = "Conversion yes; int8 needs trained weights to tell"
    elif any(record.precision in ("int8", "palette6") for record in records):
        answer = "Yes, as far as each precision goes"
        because += (
            " Rounded files (int8, palette6) need not give equal numbers: they are held to a least SQNR and to the "
            "same class on 95% of the images."
        )
    else:
        answer = "Yes: all compute what the networks compute"
    return Answer("Can I trust the files?", answer, because)


def not_measured(report: Report) -> list[str]:
    """What the report does not know, one sentence each."""
    records, found = report.records, []
    without = [record for record in records if record.accuracy is None]
    if without:
        trained = any(record.weights != UNTRAINED for record in without)
        other = " or were trained on other classes than the images here" if trained else ""
        found.append(f"Accuracy of {len(without)} of {len(records)} files: their weights are untrained{other}.")
    found += sorted(
        {f"{network_name(r)} at the end of its training, which is {r.training}." for r in records if r.training}
    )
    if all(setting.is_host for setting in settings(records)):
        found.append("Anything on a phone: every latency is this computer's. Measure there and join with --records.")
    for file_format, why in (
        ("mlpackage", "Core ML runs on Apple's systems only; measure on a Mac or an iPhone and join with --records"),
        ("pte", "no record of theirs holds one"),
    ):
        if untimed := sum(record.format == file_format and not record.latency for record in records):
            found.append(f"Latency, load time and memory of {untimed} .{file_format} files: {why}.")
    if untraced := sum(record.format == "pte" and not record.traces for record in records):
        found.append(f"Time per operator of {untraced} .pte files.")
    if unproven := [file_name(record) for record in records if record.parity is None]:
        found.append(f"Outputs of {len(unproven)} files: {', '.join(unproven)}.")
    found.append("Energy, heat and throttling, GPUs, NPUs and the Neural Engine.")
    return found
