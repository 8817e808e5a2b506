"""Graft selective kernels onto many of timm's and torchvision's networks, and tabulate what came of it.

python recipes/graft_table.py --arch timm:ghostnet_100 torchvision:mobilenet_v2    # some, as text
python recipes/graft_table.py --write                        # all: docs/graft_table.md and results/graft_table.json,
                                                             # and their summary in docs/grafting.md
python recipes/graft_table.py --write --arch timm:starnet_s1  # anew; the other rows stay

Networks are randomly initialised and then made to answer to their input as trained ones do (``look_trained``).
Differences are measured on noise and on two photographs at the network's own input size. ``edge_sk.reparameterize``
then rewrites the graft, its units moved off their start, on a photograph of 96 pixels where the network takes one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError, script  # isort: skip (before torch: Ctrl-C)
import torch
from torch import nn

import edge_sk
from edge_sk import running
from edge_sk.attention import gated_units
from edge_sk.files import write_text
from edge_sk.grafting import eligibility
from edge_sk.manifest import manifest
from edge_sk.reading import read_json
from recipes.markdown_tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "recipes" / "results" / "graft_table.json"
TABLE = ROOT / "docs" / "graft_table.md"
GUIDE = ROOT / "docs" / "grafting.md"
MARKS = ("<!-- networks -->\n", "<!-- end of the networks -->\n")
SEED = 0
# Networks of a kind that the guide names.
SHOWN = 24
# A preserved float32 network may differ by no more, relative to its largest output.
TARGET = 1e-5

TORCHVISION = """
    mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet1_0 efficientnet_b0 efficientnet_v2_s
    shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 regnet_x_400mf regnet_y_400mf
    regnet_x_800mf regnet_y_800mf resnext50_32x4d convnext_tiny
"""
TIMM = """
    mobilenetv1_100 mobilenetv1_125 mobilenetv2_050 mobilenetv2_100 mobilenetv2_140 mobilenetv3_small_050
    mobilenetv3_small_100 mobilenetv3_large_100 mobilenetv3_rw tf_mobilenetv3_large_minimal_100 mobilenetv4_conv_small
    mobilenetv4_conv_medium mobilenetv4_hybrid_medium mobilenet_edgetpu_100 lcnet_050 lcnet_100 tinynet_a tinynet_e
    mnasnet_small mnasnet_100 semnasnet_100 spnasnet_100 fbnetc_100 fbnetv3_b hardcorenas_a efficientnet_b0
    efficientnet_es efficientnet_lite0 tf_efficientnet_lite0 efficientnetv2_rw_t mixnet_s ghostnet_100 ghostnetv2_100
    ghostnetv3_100 repghostnet_100 rexnet_100 rexnetr_200 repvit_m0_9 repvit_m1 repvgg_b1g4 fastvit_t8 fastvit_sa12
    mobileone_s0 mobileone_s2 starnet_s1 starnet_s4 hgnetv2_b0 hgnetv2_b2 ese_vovnet19b_dw efficientvit_b0
    efficientvit_m0 efficientformerv2_s0 shvit_s1 swiftformer_xs nextvit_small edgenext_xx_small mobilevit_s
    mobilevitv2_050 tiny_vit_5m_224 coatnet_rmlp_nano_rw_224 convnext_atto convmixer_768_32 inception_next_tiny
    pvt_v2_b0 davit_tiny regnetx_002 regnetx_016 regnety_002 regnety_016 regnetz_b16 resnext50_32x4d resnext50d_32x4d
    seresnext26d_32x4d seresnext50_32x4d skresnext50_32x4d resnext26ts gcresnext26ts ecaresnext26t_32x4d
    resnest14d res2next50 dla60x dpn48b xception41 xception41p nf_regnet_b0 legacy_seresnext26_32x4d
"""
ARCHS = [f"torchvision:{name}" for name in TORCHVISION.split()] + [f"timm:{name}" for name in TIMM.split()]


@torch.no_grad()
def look_trained(model: nn.Module) -> None:
    """Make an untrained network answer to its input, with batch normalisations that nothing can lose unnoticed.

    Random scales and shifts, then statistics of real activations, then each statistic off by up to a fifth. Random
    statistics alone make deep networks nearly constant, and a constant hides every error. So does layer scale, which
    starts blocks at a millionth of what they compute.
    """
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        if 0 < parameter.abs().max() <= 1e-4:
            parameter.uniform_(0.1, 0.5, generator=generator)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.2, generator=generator)
    shape = running.input_shape(model)[1:]
    model(torch.cat([running.photographs(model, shape), running.random_images(model, (2, *shape))]))
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            statistic.mul_(torch.empty_like(statistic).uniform_(0.8, 1.2, generator=generator))


def dense_kernels(site: edge_sk.grafting.Site) -> tuple[edge_sk.Kernel, edge_sk.Kernel]:
    """The site's own kernel, and one of two taps more along each side that has more than one."""
    own, _ = edge_sk.grafting.default_kernels(site)
    rows, columns = (taps + 2 if taps > 1 else 1 for taps in own.taps)
    return own, edge_sk.Kernel(rows, columns=columns)


def row(arch: str) -> dict[str, Any]:
    """Graft one network twice, with dense branches (k and k + 2) and with the paper's (k and a dilated 3x3)."""
    torch.manual_seed(SEED)
    model = edge_sk.create_model(arch)
    model.eval()
    look_trained(model)
    try:
        _, dense = edge_sk.graft(model, kernels=dense_kernels)
        grafted, dilated = edge_sk.graft(model)
    except InputError as error:
        return {"arch": arch, "refused": str(error), "convolutions": len(eligibility.grouped_convolutions(model))}
    reasons: dict[str, int] = {}
    for item in dense.left:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    return {
        "arch": arch,
        "input_size": dense.input_size,
        "response": _response(model, dense.input_size),
        "own_rounding": _own_rounding(model, dense.input_size),
        "found_by": dense.found_by,
        "convolutions": len(dense.replaced) + len(dense.left),
        "replaced": len(dense.replaced),
        "with_bias": sum(site.norm is None for site in dense.replaced),
        "left": reasons,
        "params": dense.params,
        "rewritten": _rewritten(grafted, dense.input_size),
    } | {
        name: {
            "macs": report.macs,
            "params": report.params[1],
            "difference": max(one for one in (report.difference, report.difference_real) if one is not None),
            "site_difference": max(max(site.difference, site.difference_real) for site in report.replaced),
        }
        for name, report in (("dense", dense), ("dilated", dilated))
    }


@torch.no_grad()
def _rewritten(grafted: nn.Module, shape: Sequence[int]) -> dict[str, Any]:
    """What ``edge_sk.reparameterize`` makes of a graft whose units have moved off their start."""
    generator = torch.Generator().manual_seed(SEED)
    for unit in gated_units(grafted).values():
        for parameter in unit.parameters():
            # More makes deep networks amplify rounding: their batch norms' statistics are those of the start.
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.01, generator=generator))
    for side in (96, shape[-1]):
        try:
            images = running.photographs(grafted, (shape[0], side, side))[:1]
            done: Any = edge_sk.reparameterize(grafted, images).reparameterized
        except InputError:  # it takes images of one size only
            continue
        found = {"units": done.get("fuse_units", 0), "difference": done.difference, "exact": done.exact}
        return found | {"size": side, "notes": done.notes()}
    raise InputError(f"{type(grafted).__name__} does not run on images of {shape[-1]} pixels")


@torch.no_grad()
def _response(model: nn.Module, shape: Sequence[int]) -> float:
    """How much the output depends on the image: its change from one photograph to the other, relative to its size."""
    (output,) = running.outputs(model, running.photographs(model, shape))
    return float((output[0] - output[1]).abs().max() / output.abs().max())


@torch.no_grad()
def _own_rounding(model: nn.Module, shape: Sequence[int]) -> float:
    """How far the ungrafted network carries one float32 rounding of its input."""
    images = torch.cat([running.photographs(model, shape), running.random_images(model, (2, *shape))])
    rounded = images * (1 + torch.finfo(torch.float32).eps)
    return running.difference(running.outputs(model, images), running.outputs(model, rounded))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table, with its summary."""
    grafted = [one for one in rows if "refused" not in one]
    above = [one for one in grafted if worst(one) > TARGET]
    site = max((pair["site_difference"] for one in grafted for pair in pairs(one)), default=0.0)
    replaced, convolutions = _counts(rows)
    loose = [one for one in grafted if one["rewritten"]["difference"] > TARGET]
    rounded = "; ".join(f"{one['arch']} {one['rewritten']['difference']:.1e}" for one in loose)
    exact = max((one["rewritten"]["exact"] for one in loose), default=0.0)
    names = "; ".join(f"{one['arch']} {worst(one):.1e} against {one['own_rounding']:.1e}" for one in above)
    lines = [
        "# What `edge_sk.graft` does to other libraries' networks",
        "",
        f"{len(rows)} networks of timm and torchvision, {len(grafted)} grafted in float32: {replaced} of "
        f"{convolutions} depthwise and grouped convolutions larger than 1x1 ({replaced / max(convolutions, 1):.1%}). "
        f"`edge_sk.reparameterize` rewrites them all, {len(grafted) - len(loose)} to within {TARGET:.0e}"
        + (f", and {len(loose)} that amplify rounding to within {exact:.0e} in float64 ({rounded})" if loose else "")
        + ". Relative output difference: "
        f"at a single site at most {site:.1e}; of the whole network at most {TARGET:.0e} in {len(grafted) - len(above)}"
        + (
            f", and in {len(above)} more than that, where the network itself amplifies rounding ({names})."
            if above
            else "."
        ),
        "",
        "Made by `python recipes/graft_table.py --write`; the record is `recipes/results/graft_table.json`.",
        "",
        "- sites: convolutions replaced, of all depthwise and grouped ones larger than 1x1; the others have their "
        "reasons below the table; *bias*: how many of them have no batch norm behind, so that their branches have a "
        "bias",
        "- difference: largest change of any output value relative to the largest output value, on noise and "
        "photographs; weights are random, batch-normalisation statistics near those of real activations;"
        " *own rounding*: the ungrafted network when every input value moves by one float32 rounding; *k, k+2*: two "
        "dense branches; *k, 3x3 dilated*: the default branches",
        "- cost: parameters and MACs added; latency was not measured",
        "- rewritten: largest change of the output by `edge_sk.reparameterize`, of the default branches after a "
        "little noise on all weights of the units; on a photograph of 96 pixels where the network takes one",
        "- not tried here: training; `deploy/results/delegation.md` has files for phones of some",
        "",
    ]
    reasons: dict[str, list[str]] = {}
    table = []
    for one in grafted:
        for reason, count in one["left"].items():
            reasons.setdefault(reason, []).append(f"{one['arch']} ({count})")
        sites = f"{one['replaced']} of {one['convolutions']}"
        differences, costs = list[str](), list[str]()
        for pair in pairs(one):
            differences.append(f"{pair['difference']:.1e}")
            costs += [_added(one["params"][0], pair["params"]), _added(*(pair["macs"] or (0, 0)))]
        differences += [f"{one['own_rounding']:.1e}", f"{one['rewritten']['difference']:.1e}"]
        table.append([one["arch"], one["found_by"], sites, one["with_bias"], *differences, *costs])
    header = ["network", "found by", "sites", "bias", "difference: k, k+2", "k, 3x3 dilated", "own rounding"]
    header += ["rewritten", "params: k, k+2", "MACs", "params: k, 3x3 dilated", "MACs"]
    lines.append(markdown_table(header, table))
    lines += ["", "## Not replaced", ""]
    lines += [f"- {reason}: {', '.join(names)}" for reason, names in sorted(reasons.items())]
    lines += ["", "## Nothing to graft", ""]
    lines += [f"- {one['arch']}: {one['refused']}" for one in rows if "refused" in one]
    return "\n".join(lines) + "\n"


def _counts(rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Convolutions replaced, and all depthwise and grouped ones larger than 1x1."""
    return sum(one.get("replaced", 0) for one in rows), sum(one["convolutions"] for one in rows)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """What ``docs/grafting.md`` says of the networks: how many of their convolutions are replaced, by what follows."""
    grafted = [one for one in rows if "refused" not in one]
    replaced, convolutions = _counts(rows)
    kinds: dict[str, list[dict[str, Any]]] = {"batch norm": [], "batch norm behind some": [], "something else": []}
    for one in grafted:
        some = "something else" if one["with_bias"] == one["replaced"] else "batch norm behind some"
        kinds[some if one["with_bias"] else "batch norm"].append(one)
    table = []
    for kind, members in kinds.items():
        sites = f"{sum(one['replaced'] for one in members)} of {sum(one['convolutions'] for one in members)}"
        named = ", ".join(one["arch"] for one in members[:SHOWN])
        more = f" and {len(members) - SHOWN} more" if len(members) > SHOWN else ""
        table.append([kind, str(len(members)), sites, named + more])
    left = "; ".join(f"{one['arch']} ({one['refused']})" for one in rows if "refused" in one)
    return f"""\
Of {len(rows)} networks of timm and torchvision {len(grafted)} are grafted. Of their depthwise and grouped convolutions
{replaced} of {convolutions} ({replaced / max(convolutions, 1):.1%}) are replaced. [The table](graft_table.md) has every
network, what it costs, and why a convolution was not replaced.

{markdown_table(["behind the convolution", "networks", "replaced", "which"], table)}

Not grafted: {left or "none"}.
"""


def worst(one: dict[str, Any]) -> float:
    """The larger of a network's output differences."""
    return max(pair["difference"] for pair in pairs(one))


def pairs(one: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured of a network's two grafts, with dense and with dilated branches."""
    return [one["dense"], one["dilated"]]


def allowed(one: dict[str, Any]) -> float:
    """The largest output difference that counts as preserved.

    The target, or twice what the network itself makes of one float32 rounding of its input: which roundings happen is
    the processor's choice, and timm:efficientvit_m0 keeps the target on one and misses it on another.
    """
    return max(TARGET, 2 * one["own_rounding"])


def _added(before: int, after: int) -> str:
    return f"{(after - before) / before:+.1%}" if before else "not counted"


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Graft, tabulate, and with ``--write`` renew the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--arch", nargs="+", default=ARCHS, metavar="A", help="timm:NAME or torchvision:NAME")
    parser.add_argument("--write", action="store_true", help="renew the pages and their record")
    args = parser.parse_args(argv)
    if args.write and (unknown := set(args.arch) - set(ARCHS)):
        raise InputError(f"--write renews rows of the table, which has no {min(unknown)}; leave it out")
    known = {one["arch"]: one for one in read_json(RECORD)["rows"]} if args.write else {}
    for number, arch in enumerate(args.arch, 1):
        known[arch] = row(arch)
        print(f"{number}/{len(args.arch)} {arch}", file=sys.stderr, flush=True)
        if args.write:
            write([known[one] for one in ARCHS if one in known], sys.argv[1:] if argv is None else argv)
    if not args.write:
        print(markdown(list(known.values())))
    return 0


def write(rows: Sequence[dict[str, Any]], argv: Sequence[str]) -> None:
    """Renew the record and the pages."""
    record = {"rows": rows} | manifest(["recipes/graft_table.py", *argv], seed=SEED)
    write_text(RECORD, json.dumps(record, indent=1) + "\n")
    write_text(TABLE, markdown(rows))
    before, _, rest = GUIDE.read_text(encoding="utf-8").partition(MARKS[0])
    write_text(GUIDE, before + MARKS[0] + summary(rows) + MARKS[1] + rest.partition(MARKS[1])[2])


if __name__ == "__main__":
    sys.exit(main())
