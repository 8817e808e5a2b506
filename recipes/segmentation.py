r"""Segment: train a network on masks, graft selective kernels onto it, train on, export it, draw what the file sees.

python recipes/segmentation.py --output runs/segmentation                  # minutes: files, their records, masks.png
python recipes/segmentation.py --seeds 0 1 2 --output runs/segmentation --record recipes/results/segmentation.json

The task is made of real pixels that come with scikit-learn: up to three handwritten digits in ink of any colour on a
piece of a photograph. The network says of every pixel whether ink covers it. It trains on training digits over the left
of two photographs and is tested on test digits over their right. The control trains on ungrafted, on the same images
for as long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from edge_sk.errors import InputError, script  # isort: skip (before torch: Ctrl-C)
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import edge_sk
from edge_sk.files import atomic_write, check_output, write_text
from edge_sk.manifest import manifest
from edge_sk.training.digits import digits

CANVAS = 64
CLASSES = ["background", "stroke"]
BACKBONE = "timm:mobilenetv3_small_050@features_only=true"
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
BORDER = 440  # column of a photograph, 640 pixels wide, up to which it is for training
IMAGES = {"train": 1024, "test": 128}
BATCH, RATE, LOWER_RATE = 16, 3e-3, 1e-3
SHOWN = 8  # canvases in the picture


class Segmenter(nn.Module):
    """A backbone whose maps are added up from coarse to fine, and read as logits of every pixel, ``(N, 2, H, W)``."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.backbone: Any = edge_sk.create_model(BACKBONE)
        self.lateral = nn.ModuleList(
            nn.Conv2d(channels, width, 1) for channels in self.backbone.feature_info.channels()
        )
        self.classes = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        """From normalised images to logits."""
        maps = [lateral(features) for lateral, features in zip(self.lateral, self.backbone(x), strict=True)]
        total = maps.pop()
        for finer in reversed(maps):
            total = finer + F.interpolate(total, size=finer.shape[2:], mode="bilinear", align_corners=False)
        return F.interpolate(self.classes(total.relu()), size=x.shape[2:], mode="bilinear", align_corners=False)


def draw(split: Literal["train", "test"], seed: int) -> tuple[Tensor, Tensor]:
    """Canvases, uint8 ``(N, H, W, 3)``, and the class of every pixel, int64 ``(N, H, W)``."""
    from sklearn.datasets import load_sample_image

    (pictures, _), columns = digits(split), np.s_[:, :BORDER] if split == "train" else np.s_[:, BORDER:]
    photographs = [load_sample_image(name)[columns] for name in PHOTOGRAPHS]
    random = np.random.default_rng(seed)
    canvases, masks = np.empty((IMAGES[split], CANVAS, CANVAS, 3), np.uint8), np.zeros((IMAGES[split], CANVAS, CANVAS))
    for canvas, mask in zip(canvases, masks, strict=True):
        photograph = photographs[random.integers(len(photographs))]
        top, left = (int(random.integers(room - CANVAS + 1)) for room in photograph.shape[:2])
        canvas[:] = photograph[top : top + CANVAS, left : left + CANVAS]
        for which in random.integers(len(pictures), size=random.integers(1, 4)):
            side = int(random.integers(24, 49))
            grey = Image.fromarray(pictures[which].numpy()).resize((side, side), Image.Resampling.BICUBIC)
            top, left = random.integers(CANVAS - side + 1, size=2)
            place = np.s_[top : top + side, left : left + side]
            ink = np.asarray(grey)[..., None] / 255
            # Ink that nobody could see teaches nothing.
            colours = random.integers(256, size=(9, 3))
            colour = max(colours, key=lambda one: abs(one.mean() - canvas[place].mean()))
            canvas[place] = np.rint(ink * colour + (1 - ink) * canvas[place])
            mask[place][ink[..., 0] > 0.5] = 1
    return torch.from_numpy(canvases), torch.from_numpy(masks).long()


def normalized(canvases: Tensor) -> Tensor:
    """What the network reads: mean and standard deviation 0.5."""
    return (canvases.movedim(-1, 1).float() / 255 - 0.5) / 0.5


def train(network: nn.Module, epochs: int, seed: int, rate: float = RATE) -> nn.Module:
    """Train a network on canvases of its own for each epoch."""
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    steps = epochs * IMAGES["train"] // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    for epoch in range(epochs):
        canvases, masks = draw("train", seed + epoch)
        for images, wanted in zip(canvases.split(BATCH), masks.split(BATCH), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(normalized(images)), wanted).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def masks_of(network: nn.Module, canvases: Tensor) -> Tensor:
    """The class that a network chooses for every pixel, int64 ``(N, H, W)``."""
    return torch.cat([network(normalized(part)).argmax(1) for part in canvases.split(BATCH)])


def mean_iou(chosen: Tensor, masks: Tensor) -> float:
    """Mean over the classes of intersection over union, in per cent."""
    pairs = [(chosen == one, masks == one) for one in range(len(CLASSES))]
    return 100 * statistics.fmean(float((ours & theirs).sum() / (ours | theirs).sum()) for ours, theirs in pairs)


def export(network: nn.Module, test: tuple[Tensor, Tensor], output: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Write the files and the picture; return what was measured of each file."""
    from edge_sk.export import to_mlpackage, to_pte
    from edge_sk.export.executorch.pte import run_outputs
    from edge_sk.export.network import Network

    canvases, masks = test
    images = output / "images"
    for folder, shown in (("train", draw("train", 0)[0][:128]), ("val", canvases)):
        (images / folder / "canvas").mkdir(parents=True, exist_ok=True)
        for number, canvas in enumerate(shown.numpy()):
            Image.fromarray(canvas).save(images / folder / "canvas" / f"{number}.png")
    exported = Network(
        arch="strokes", model=network, weights=output.resolve().name, input_size=(3, CANVAS, CANVAS), mean=(0.5,) * 3,
        std=(0.5,) * 3, crop_pct=1.0, labels=CLASSES, data=str(images),
    )  # fmt: skip
    about: dict[str, Any] = {"images": len(canvases), "replace": True, "argv": argv}
    records = [to_pte(exported, output, precision=precision, **about) for precision in ("int8", "fp32")]
    records.append(to_mlpackage(exported, output, precision="fp16", **about))
    measured: dict[str, Any] = {record.file: record.parity.model_dump() for record in records if record.parity}
    chosen = masks
    for record in records[:2]:
        program = (output / record.file).read_bytes()
        chosen = torch.cat(run_outputs(program, canvases.movedim(-1, 1).float() / 255)).argmax(1)
        measured[record.file]["mean_iou"] = mean_iou(chosen, masks)
    # A row each: canvases, their masks, and the masks of the .pte in fp32.
    shown = [masks[:SHOWN], chosen[:SHOWN]]
    rows = [canvases[:SHOWN], *(255 * mask[..., None].expand(-1, -1, -1, 3) for mask in shown)]
    picture = Image.fromarray(torch.cat([torch.cat([*row], 1) for row in rows]).to(torch.uint8).numpy())
    with atomic_write(output / "masks.png") as temporary:
        picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(temporary, "PNG")
    return measured


def one_seed(seed: int, epochs: int, test: tuple[Tensor, Tensor]) -> tuple[dict[str, Any], nn.Module]:
    """Train, graft, train on; what was measured, and the grafted network."""
    torch.manual_seed(seed)
    first = 1 + 2 * epochs * seed  # no two epochs of two seeds have the same canvases
    network = train(Segmenter(), epochs, first)
    grafted, report = edge_sk.graft(network)
    row: dict[str, Any] = {"seed": seed, "sites": len(report.replaced), "mean_iou": {}}
    for name, one in (("ungrafted", network), ("grafted", grafted)):
        row["mean_iou"][f"{name}, before"] = mean_iou(masks_of(one, test[0]), test[1])
        train(one, epochs, first + epochs, LOWER_RATE)
        row["mean_iou"][name] = mean_iou(masks_of(one, test[0]), test[1])
    print(f"seed {seed}: " + ", ".join(f"{name} {value:.2f} %" for name, value in row["mean_iou"].items()))
    return row, grafted


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Train, graft, train on, export; print and record what was measured."""
    parser = argparse.ArgumentParser(
        prog="recipes/segmentation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="files, their images and the picture")
    parser.add_argument("--epochs", type=int, default=6, help="of training, and again after the graft (default: 6)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="the network of the last one is exported")
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSON of what was measured; default: in --output")
    args = parser.parse_args(argv)
    if args.epochs < 1:
        raise InputError(f"--epochs {args.epochs} trains nothing; give at least 1")
    if not 0 <= min(args.seeds) <= max(args.seeds) < 2**31:
        raise InputError(f"--seeds {' '.join(map(str, args.seeds))}: give whole numbers from 0 to {2**31 - 1}")
    check_output(args.output)
    command = ["recipes/segmentation.py", *(sys.argv[1:] if argv is None else argv)]
    test = draw("test", 0)
    results = [one_seed(seed, args.epochs, test) for seed in args.seeds]
    rows, grafted = [row for row, _ in results], results[-1][1]
    record = {"epochs": args.epochs, "rows": rows, "files": export(grafted, test, args.output, command)}
    write_text(args.record or args.output / "record.json", json.dumps(record | manifest(command), indent=1) + "\n")
    for name, proof in record["files"].items():
        print(f"{name}: same class in {proof['top1_agreement']:.2%} of the pixels, SQNR {proof['sqnr_db']:.1f} dB")
    print(args.output / "masks.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
