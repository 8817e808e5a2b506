"""The answers that a report begins with, and what it does not know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from edge_sk.export.network import UNTRAINED
from edge_sk.export.record import Record
from edge_sk.export.report import latencies
from edge_sk.export.report.differences import pairs
from edge_sk.export.report.latencies import Setting, latency_in
from edge_sk.export.report.marks import parity_mark
from edge_sk.export.report.model import Report, file_title, network_title


class Answer(NamedTuple):
    """A question, a short answer, and the evidence for it."""

    question: str
    answer: str
    because: str


def answers(report: Report) -> list[Answer]:
    """Answer: which file is smallest, fastest, on the Pareto front; does SK pay; can the files be trusted."""
    records = report.records
    setting = next(iter(latencies.settings(records)), None)
    metric = latencies.default_metric(records, setting)
    on_front = [records[index] for index in latencies.front(records, setting, metric)]
    return [
        Answer("Which file is smallest?", *_smallest(records)),
        Answer("Which is fastest?", *_fastest(records, setting)),
        Answer("Which are on the Pareto front?", *_on_front(on_front, metric.more_is_better)),
        Answer("Does SK pay here?", *_sk_pays(records, setting, on_front)),
        Answer("Can I trust the files?", *_trust(report)),
    ]


def _smallest(records: Sequence[Record]) -> tuple[str, str]:
    least, lean = min(records, key=lambda r: r.size_bytes), min(records, key=lambda r: r.params)
    return (
        f"{file_title(least)}: {least.size_bytes / 1e6:.2f} MB",
        f"Fewest parameters: {network_title(lean)}, {lean.params / 1e6:.2f} million.",
    )


def _fastest(records: Sequence[Record], setting: Setting | None) -> tuple[str, str]:
    timed = [(latency, record) for record in records if (latency := latency_in(record, setting))]
    if not timed or setting is None:
        return "Not measured", "No record holds a latency."
    timed.sort(key=lambda pair: pair[0].p50_ms)
    best, fastest = timed[0]
    place = "this computer, not on a phone" if setting.is_host else setting.where
    because = f"Median on {place}, {setting.thread_text}."
    full = next(((latency.p50_ms, r) for latency, r in timed if (r.precision, r.format) == ("fp32", "pte")), None)
    if full and full[1] is not fastest:
        because += f" Fastest in fp32: {network_title(full[1])}, {full[0]:.2f} ms."
    noise = latencies.difference_noise_ms
    close = [file_title(r) for latency, r in timed[1:] if latency.p50_ms - best.p50_ms <= noise(latency, best)]
    if close:
        because += f" Equally fast within the noise: {', '.join(close)}."
    return f"{file_title(fastest)}: {best.p50_ms:.2f} ms", because


def _on_front(on_front: Sequence[Record], by_accuracy: bool) -> tuple[str, str]:
    if not on_front:
        return "Not measured", "A front needs latencies."
    because = (
        "No other file is both faster and more accurate. Differences within the noise count too."
        if by_accuracy
        else "No other file is both faster and smaller in MACs. This compares cost only, because fewer than two files "
        "have both a latency and an accuracy."
    )
    return ", ".join(map(file_title, on_front)), because


def _sk_pays(records: Sequence[Record], setting: Setting | None, on_front: Sequence[Record]) -> tuple[str, str]:
    found = [pair for pair in pairs(records, setting) if pair.changed.arch.startswith("sk")]
    if not found:
        return "Not asked", "The report has no network both with and without selective kernels."
    # Prefer a pair with latency and without the rounding of int8.
    pair = min(found, key=lambda p: (p.latency is None, p.changed.format != "pte", p.changed.precision != "fp32"))
    latency = "not measured"
    if pair.latency is not None and pair.latency_ms is not None:
        change, noise = pair.latency_ms
        noise_text = f"{'within the noise of' if abs(change) <= noise else 'noise'} {noise:.2f}"
        latency = f"{pair.latency:+.1%} ({change:+.2f} ms, {noise_text})"
    because = (
        f"{network_title(pair.changed)} against {network_title(pair.plain)} ({pair.changed.precision} "
        f".{pair.changed.format}): parameters {pair.params:+.1%}, MACs {pair.macs:+.1%}, latency {latency}"
    )
    if pair.accuracy is None:
        because += ". Accuracy decides, and these files have none: give trained run folders with --checkpoint."
        return "Its cost is known, its gain was not measured", because
    because += f", accuracy {pair.accuracy.value:+.2f} points (noise {pair.accuracy.noise:.2f})."
    if pair.accuracy.value <= pair.accuracy.noise:
        return "Not shown: its gain is within the noise", because
    if pair.latency is not None and not any(record is pair.changed for record in on_front):
        because += " It is not on the front of latency against accuracy."
        return "It gains, but another network gains more in the same time", because
    return "Yes: it gains accuracy beyond the noise", f"{because} Each network was trained once."


def _trust(report: Report) -> tuple[str, str]:
    records = report.records
    counts = Counter(parity_mark(record).level for record in records)
    texts = {"partial": "meet only weaker ones", "unknown": "were not run", "bad": "differ"}
    said = [f"{counts['good']} of {len(records)} meet every threshold"]
    said += [f"{counts[level]} {text}" for level, text in texts.items() if counts[level]]
    because = f"Files were run on real images and compared with the network in PyTorch: {', '.join(said)}."
    if report.failures:
        because += f" {len(report.failures)} more could not be made or measured: see below."
    if any(record.weights == UNTRAINED for record in records):
        because += " Untrained networks show only what a network costs; do not ship them."
    if counts["bad"]:
        return "No: some files compute something else", because
    if counts["unknown"]:
        return "Only those that were run", because
    if any(record.parity and record.parity.accepted for record in records):
        return "As far as --accept asked; see what each file was held to", because
    if counts["partial"]:
        return "Conversion yes; int8 needs trained weights", because
    if any(record.precision in ("int8", "palette6") for record in records):
        because += " Rounded files (int8, palette6) need not give equal numbers: see what was required."
        return "Yes, as far as each precision goes", because
    return "Yes: all compute what the networks compute", because


def not_measured(report: Report) -> list[str]:
    """Return what was not measured, in one sentence each."""
    records, found = report.records, []
    if without := [record for record in records if record.accuracy is None]:
        why = "their weights are untrained"
        if any(record.weights != UNTRAINED for record in without):
            why += " or were trained on other classes than the images here, or they are no classifiers"
        found.append(f"Accuracy of {len(without)} of {len(records)} files: {why}.")
    found += sorted(
        {f"{network_title(r)} at the end of its training, which is {r.training}." for r in records if r.training}
    )
    if all(setting.is_host for setting in latencies.settings(records)):
        found.append(
            "Anything on a phone: every latency is this computer's. Measure on a phone and join with --records."
        )
    for file_format, why in (
        ("mlpackage", "Core ML runs on Apple's systems only; measure on a Mac or an iPhone and join with --records"),
        ("pte", "their records hold none"),
    ):
        if untimed := sum(record.format == file_format and not record.latency for record in records):
            found.append(f"Latency, load time and memory of {untimed} .{file_format} files: {why}.")
    if untraced := sum(record.format == "pte" and not record.traces for record in records):
        found.append(f"Time per operator of {untraced} .pte files.")
    if unproven := [file_title(record) for record in records if record.parity is None]:
        found.append(f"Outputs of {len(unproven)} files: {', '.join(unproven)}.")
    found.append("Energy, heat and throttling, GPUs, NPUs and the Neural Engine.")
    return found
