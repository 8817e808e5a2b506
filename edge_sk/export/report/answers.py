"""The questions people open a report with, answered in plain words."""

from __future__ import annotations

import dataclasses
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
    known = settings(records)
    setting = known[0] if known else None
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
    best, record = timed[0]
    close = [other for one, other in timed[1:] if one.p50_ms - best.p50_ms <= difference_noise_ms(one, best)]
    tied = f" Not told apart from it, within the noise: {', '.join(map(file_name, close))}." if close else ""
    same = [
        (one, other) for one, other in timed if (other.precision, other.format) == ("fp32", "pte") and other != record
    ]
    full = f" Fastest in fp32: {network_name(same[0][1])}, {same[0][0].p50_ms:.2f} ms." if same else ""
    place = "this computer, not on a phone" if setting.is_host else setting.where
    return Answer(
        question,
        f"{file_name(record)}: {best.p50_ms:.2f} ms",
        f"Median on {place}, {setting.thread_text}.{full}{tied}",
    )


def _on_front(records: Sequence[Record], setting: Setting | None, metric: Metric) -> Answer:
    question = "Which are on the Pareto front?"
    found = front(records, setting, metric)
    if not found:
        return Answer(question, "Not measured", "A front needs latencies.")
    names = ", ".join(file_name(records[index]) for index in found)
    if metric.more_is_better:
        return Answer(
            question,
            names,
            "No other file is both faster and more accurate, as measured: differences within the noise count too.",
        )
    return Answer(
        question,
        names,
        "No other file is both faster and leaner in MACs. Cost only: not two files have both a latency and an "
        "accuracy, so this does not say which network recognises better.",
    )


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
    if pair.accuracy is None or pair.accuracy_noise is None:
        return Answer(
            question,
            "Its cost is known, its gain was not measured",
            f"{costs}. Accuracy decides, and these files have none: give trained run folders with --checkpoint.",
        )
    gain = f"{costs}, accuracy {pair.accuracy:+.2f} points (noise {pair.accuracy_noise:.2f})"
    if pair.accuracy <= pair.accuracy_noise:
        return Answer(question, "Not shown: its gain is within the noise", f"{gain}.")
    on_front = {id(records[index]) for index in front(records, setting, metric)}
    if pair.latency is not None and id(pair.changed) not in on_front:
        return Answer(
            question,
            "It gains, and another network gives more for the time",
            f"{gain}. It is not on the front of latency against accuracy.",
        )
    return Answer(question, "Yes: it gains accuracy beyond the noise", f"{gain}. One training of each, no repeats.")


def _latency_text(pair: Pair) -> str:
    if pair.latency is None or pair.latency_ms is None or pair.latency_noise_ms is None:
        return "latency not measured"
    within = "within" if abs(pair.latency_ms) <= pair.latency_noise_ms else "noise"
    noise = (
        f"{within} the noise of {pair.latency_noise_ms:.2f}"
        if within == "within"
        else (f"noise {pair.latency_noise_ms:.2f}")
    )
    return f"latency {pair.latency:+.1%} ({pair.latency_ms:+.2f} ms, {noise})"


def _trust(report: Report) -> Answer:
    records = report.records
    marks = [parity_mark(record) for record in records]
    counts = {level: sum(mark.level == level for mark in marks) for level in ("good", "partial", "bad", "unknown")}
    total = len(records)
    said = [f"{counts['good']} of {total} reach the full demands"]
    said += [f"{counts['partial']} only weak ones (untrained weights)"] if counts["partial"] else []
    said += [f"{counts['unknown']} were not run"] if counts["unknown"] else []
    said += [f"{counts['bad']} differ"] if counts["bad"] else []
    because = f"Each file was run on real images and held against the network in PyTorch: {', '.join(said)}."
    if report.failures:
        because += f" {len(report.failures)} wanted could not be made or measured: see below."
    if any(record.weights == UNTRAINED for record in records):
        because += " Untrained networks are here for their cost; do not ship them."
    if counts["bad"]:
        return Answer("Can I trust the files?", "No: some files compute something else", because)
    if counts["unknown"]:
        return Answer("Can I trust the files?", "Those that were run", because)
    if counts["partial"]:
        return Answer("Can I trust the files?", "Conversion yes; int8 needs trained weights to tell", because)
    if any(record.precision in ("int8", "palette6") for record in records):
        because += (
            " Rounded files (int8, palette6) need not give equal numbers: they are held to a least SQNR and to the "
            "same class on 95% of the images."
        )
        return Answer("Can I trust the files?", "Yes, as far as each precision goes", because)
    return Answer("Can I trust the files?", "Yes: all compute what the networks compute", because)


def not_measured(report: Report) -> list[str]:
    """What the report does not know, one sentence each."""
    records, found = report.records, []
    without = [record for record in records if record.accuracy is None]
    if without:
        why = (
            "their weights are untrained"
            if all(r.weights == UNTRAINED for r in without)
            else ("their weights are untrained or were trained on other classes than the images here")
        )
        found.append(f"Accuracy of {len(without)} of {len(records)} files: {why}.")
    unfinished = {
        f"{network_name(r)} at the end of its training, which is {r.training}." for r in records if r.training
    }
    found += sorted(unfinished)
    if not any(not setting.is_host for setting in settings(records)):
        found.append("Anything on a phone: every latency is this computer's. Measure there and join with --records.")
    for form, why in (
        ("mlpackage", "Core ML runs on Apple's systems only; measure on a Mac or an iPhone and join with --records"),
        ("pte", "no record of theirs holds one"),
    ):
        untimed = [record for record in records if record.format == form and not record.latency]
        if untimed:
            found.append(f"Latency, load time and memory of {len(untimed)} .{form} files: {why}.")
    if untraced := [record for record in records if record.format == "pte" and not record.traces]:
        found.append(f"Time per operator of {len(untraced)} .pte files.")
    if unproven := [record for record in records if record.parity is None]:
        found.append(f"Outputs of {len(unproven)} files: {', '.join(map(file_name, unproven))}.")
    found.append("Energy, heat and throttling, GPUs, NPUs and the Neural Engine.")
    return found
