"""Recipes: everything about a training run except the architecture and the data set, as strict, frozen YAML."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge_sk.errors import InputError
from edge_sk.reading import explained, parse_yaml, read_yaml, short, to_yaml

# Upper limits are far above what makes sense: they keep a slip of the keyboard from taking all memory or time.
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**6)]
CropPct = Annotated[float, Field(ge=0.1, le=1)]
Alpha = Annotated[float, Field(ge=0, le=100)]
Beta = Annotated[float, Field(ge=0, lt=1)]
# YAML has lists only; the fields are tuples so that a frozen recipe is frozen to the bottom.
Range = Annotated[tuple[float, float], Field(strict=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataRecipe(_Section):
    """How images are read and batched."""

    batch_size: Count = 256  # images per optimizer step, over all processes and accumulated parts
    accumulation: Count = 1  # parts that a process's share of the batch is computed in, to save memory
    eval_batch_size: Count = 256  # images per process
    input_size: Annotated[int, Field(ge=8, le=4096)] | None = None  # pixels; null: the architecture's own
    crop_pct: CropPct | None = None  # evaluation crop / resized side; null: the architecture's
    interpolation: Literal["bilinear", "bicubic"] | None = None  # null: the architecture's
    num_classes: Count | None = None  # only where the data set cannot tell (WebDataset)
    max_unreadable: Annotated[int, Field(ge=0, le=10**9)] = 10  # images that may be skipped before the run stops
    root: str = "data"  # folder that torch/... and hfds/... data sets are kept in
    download: bool = True  # fetch a torch/... data set that is not there
    train_split: str | None = None  # hfds: a split; wds: one of _info.json or "a-{00..09}.tar|IMAGES"; null: "train"
    val_split: str | None = None  # the same; null: "validation". scaled_glyphs: test (null) or validation
    image_key: str | None = None  # hfds: column (image); wds: extensions (jpg;png;webp)
    label_key: str | None = None  # hfds: column (label); wds: field of the json file (null: the .cls file)
    holdout: Annotated[float, Field(ge=0, le=0.9)] = 0.0  # share of the training images that is the validation set

    def split_name(self, split: Literal["train", "test"]) -> str:
        """The split of a ``hfds`` or ``wds`` data set."""
        return (self.train_split or "train") if split == "train" else (self.val_split or "validation")


class AugmentRecipe(_Section):
    """What happens to a training image."""

    crop: Literal["resized", "padded", "none"] = "resized"  # random area and aspect | pad and shift | resize only
    scale: Range = (0.08, 1.0)  # resized: area, as a fraction of the image
    ratio: Range = (3 / 4, 4 / 3)  # resized: width / height
    padding: Annotated[int, Field(ge=0, le=1024)] = 4  # padded: pixels on each side
    hflip: Fraction = 0.5  # chance of a horizontal flip
    rotation: Annotated[float, Field(ge=0, le=360)] = 0.0  # degrees, either way
    translate: Fraction = 0.0  # of the side, either way
    zoom: Range = (1.0, 1.0)  # factor that the content is enlarged by
    color_jitter: Annotated[float, Field(ge=0, le=10)] = 0.0  # strength of brightness, contrast and saturation
    auto_augment: str | None = None  # timm's names, for example rand-m9-mstd0.5
    erasing: Fraction = 0.0  # chance that a rectangle of 2 to 33 % of the image becomes noise (timm's, per pixel)
    mixup: Alpha = 0.0  # alpha; 0: none
    cutmix: Alpha = 0.0  # alpha; 0: none. With mixup, a batch gets either

    @model_validator(mode="after")
    def _ranges(self) -> AugmentRecipe:
        for name in ("scale", "ratio", "zoom"):
            low, high = getattr(self, name)
            if not 0.01 <= low <= high <= 100:
                raise ValueError(f"{name} must be [low, high] with 0.01 <= low <= high <= 100, got [{low}, {high}]")
        for name in ("mixup", "cutmix"):
            if 0 < (alpha := getattr(self, name)) < 0.01:
                raise ValueError(f"{name} is 0 or at least 0.01, got {alpha}")
        if self.scale[1] > 1:
            raise ValueError(f"scale is a fraction of the image's area, at most 1, got {self.scale[1]}")
        return self


class OptimRecipe(_Section):
    """The optimizer, for example ``sgd``, ``adamw``, ``rmsproptf``."""

    name: str = "sgd"  # one of timm's
    lr: Annotated[float, Field(gt=0, le=1000)] = 0.1  # at the recipe's batch size; never rescaled
    momentum: Fraction = 0.9  # of optimizers that have it
    betas: Annotated[tuple[Beta, ...], Field(strict=False)] | None = None  # of Adam and its kin; null: timm's
    eps: Annotated[float, Field(gt=0, le=1)] | None = None  # added to a divisor; null: timm's
    nesterov: bool = False  # sgd: with Nesterov's momentum
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 1e-4  # as the optimizer has it: L2, or decoupled (adamw)
    decay_norm_and_bias: bool = False  # weight decay also on what has one dimension
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None  # lr of a layer (timm's groups) / lr of the next one
    clip_grad_norm: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None  # largest norm of all gradients; null: any


class ScheduleRecipe(_Section):
    """Learning rate against time, set anew at every step."""

    name: Literal["linear", "cosine", "step", "constant"] = "cosine"  # how lr falls behind the warm-up
    epochs: Count = 100  # passes over the training images
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0  # linear from 0, counted inside epochs
    milestones: Annotated[tuple[int, ...], Field(strict=False)] = ()  # step: epochs at which lr is multiplied by gamma
    gamma: Fraction = 0.1  # see milestones

    @model_validator(mode="after")
    def _milestones(self) -> ScheduleRecipe:
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("milestones belong to name=step: set some with it, and [] with another name")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} leaves nothing of epochs={self.epochs}")
        return self


class LossRecipe(_Section):
    """What is minimised; the validation loss is always cross-entropy without smoothing."""

    name: Literal["cross_entropy", "bce"] = "cross_entropy"  # bce: binary cross-entropy, every class on its own
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # part of a target spread over all classes
    bce_threshold: Fraction | None = None  # bce: targets above it are 1, the others 0; null: as they are

    @model_validator(mode="after")
    def _threshold(self) -> LossRecipe:
        if self.bce_threshold is not None and self.name != "bce":
            raise ValueError("bce_threshold goes with name=bce")
        return self


class DistillRecipe(_Section):
    """Distillation: a trained network's outputs are targets beside the labels (Hinton et al. 2015; timm's task)."""

    teacher: str | None = None  # timm:NAME.TAG, torchvision:NAME.WEIGHTS, a run folder or a file of weights; null: none
    arch: str | None = None  # the teacher's, where a file has no run's config.json beside it
    weight: Fraction = 0.5  # of the teacher's part of the loss; the labels' part has the rest
    temperature: Annotated[float, Field(ge=0.1, le=100)] = 1.0  # both networks' logits are divided by it


class QuantizationRecipe(_Section):
    """Quantization-aware training of the int8 ``.pte``: a trained network goes on with that file's rounding."""

    qat: bool = False  # from checkpoint.init_from on; batch norms are folded, so lr is that of a fine-tuning


class EmaRecipe(_Section):
    """Moving average of the weights; when enabled it is what is evaluated and written."""

    enabled: bool = False  # false: the weights themselves
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999  # part of the average that stays at a step
    warmup: bool = False  # a smaller decay in the first steps (timm's)


class RuntimeRecipe(_Section):
    """How the run is computed: speed and rounding, not the method."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast; fp16 with loss scaling
    compile: bool = False  # torch.compile
    channels_last: bool = False  # memory format; faster for most networks
    sync_bn: bool = False  # batch statistics over all processes; on GPUs only


class CheckpointRecipe(_Section):
    """What the run starts from, and when it is saved and evaluated; both always happen at its end."""

    init_from: str | None = None  # starting weights, as create_model takes them; null: random
    every_minutes: Annotated[float, Field(ge=0, le=1e6)] = 10.0  # 0: after every step; also at SIGTERM and SIGINT
    evaluate_every: Count = 1  # epochs between evaluations


class LogRecipe(_Section):
    """What the scripts show and write beside metrics.csv."""

    every_seconds: Annotated[float, Field(ge=0, le=1e6)] = 30.0  # from line to line where stderr is no terminal
    tensorboard: bool = False  # curves in the run folder
    wandb: bool = False  # a run of Weights & Biases


class Recipe(_Section):
    """A whole recipe; every field has a default. The files in ``recipes/`` say what differs and why."""

    data: DataRecipe = DataRecipe()
    augment: AugmentRecipe = AugmentRecipe()
    optim: OptimRecipe = OptimRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    loss: LossRecipe = LossRecipe()
    distill: DistillRecipe = DistillRecipe()
    quantization: QuantizationRecipe = QuantizationRecipe()
    ema: EmaRecipe = EmaRecipe()
    runtime: RuntimeRecipe = RuntimeRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    log: LogRecipe = LogRecipe()

    @model_validator(mode="after")
    def _quantization(self) -> Recipe:
        if self.quantization.qat:
            if self.checkpoint.init_from is None:
                raise ValueError("quantization.qat=true goes on with a trained network: set checkpoint.init_from")
            if self.runtime.precision != "fp32" or self.runtime.compile:
                raise ValueError("quantization.qat=true needs runtime.precision=fp32 and runtime.compile=false")
        return self


# Fields that a resumed run may change, and that may differ between runs of one comparison: they change where, how fast
# and how safely a run computes, not what. Accumulation and sync_bn change how many images a batch norm sees; a
# checkpoint holds that number (plan.start).
FREE = {
    *(f"data.{field}" for field in ("accumulation", "eval_batch_size", "max_unreadable", "root", "download")),
    *("runtime.compile", "runtime.sync_bn", "checkpoint.every_minutes", "checkpoint.evaluate_every"),
    *(f"log.{field}" for field in LogRecipe.model_fields),
}
# A run whose loss was not finite may be continued with others of these.
REMEDIES = {"optim.lr", "optim.clip_grad_norm", "schedule.warmup_epochs"}


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from YAML, with ``overrides`` (``section.key=value`` strings, values in YAML).

    An ``InputError`` where it is not YAML, or a key is unknown or a value wrong.
    """
    values = read_yaml(path)
    if values is not None and not isinstance(values, dict):
        raise InputError(f"{path} must hold sections ({', '.join(Recipe.model_fields)}), got {short(repr(values))}")
    return make_recipe(values or {}, overrides, origin=str(path))


def make_recipe(values: dict[str, Any], overrides: Sequence[str] = (), *, origin: str = "recipe") -> Recipe:
    """Validate nested ``values`` after applying ``overrides``; errors as in :func:`read_recipe`."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    overridden = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, field = key.strip().partition(".")
        if not (equals and dot and field):
            near = [name for name in settings(Recipe()) if name.endswith(f".{key.strip()}")]
            hint = f"did you mean {near[0]}=...?" if near else "for example optim.lr=0.1"
            raise InputError(f"--set {short(repr(override))} is not section.key=value; {hint}")
        overridden.add(key.strip())
        # Validation reports a section that is not a mapping.
        if isinstance(merged.setdefault(section, {}), dict):
            merged[section][field] = parse_yaml(text, f"--set {short(key)}")
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
            given = any(key == where or key.startswith(f"{where}.") for key in overridden)
            problems.append(f"{'--set' if given else origin}: {_explain(dict(problem), where)}")
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError("; ".join(problems[:3]) + more) from None


def settings(recipe: Recipe) -> dict[str, Any]:
    """Every field of a recipe by its dotted key, values as in YAML."""
    return {
        f"{section}.{key}": value
        for section, fields in recipe.model_dump(mode="json").items()
        for key, value in fields.items()
    }


def recipe_to_yaml(recipe: Recipe) -> str:
    """The resolved recipe: every field, in the order of the sections above."""
    return to_yaml(recipe.model_dump(mode="json"))


def _explain(problem: dict[str, Any], where: str) -> str:
    if problem["type"] != "extra_forbidden":
        return explained(problem | {"loc": (where,) if where else ()})
    section, dot, field = where.rpartition(".")
    keys = list(settings(Recipe()))
    known = [key for key in keys if key.startswith(f"{section}.")] if dot else list(Recipe.model_fields)
    names = {name.rpartition(".")[2]: name for name in known}
    # A wrong or forgotten section (lr for optim.lr) is the commonest mistake, a misspelled name the next.
    nearest = [key for key in keys if key.endswith(f".{field}")]
    nearest += [names[name] for name in difflib.get_close_matches(field, names, n=1)]
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    return f"unknown key {short(where)}{hint}; known: {', '.join(known)}"
