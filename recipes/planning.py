"""From a command line to a plan: the named recipes, the defaults, the names of run folders."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from edge_sk.errors import InputError
from edge_sk.models import _folders, default_recipe
from edge_sk.models._registry import FOLDERS
from edge_sk.training.plan import Plan
from edge_sk.training.recipe import Recipe, read_recipe
from edge_sk.training.run import RECIPE, load_config, saved_manifest, saved_recipe
from edge_sk.training.sources import is_embedded

RECIPES = Path(__file__).resolve().parent


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe beside the scripts (``light``) or a YAML file; errors also as in ``read_recipe``."""
    is_path = name.endswith((".yaml", ".yml")) or "/" in name
    path = Path(name) if is_path else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise InputError(f"no recipe {name!r}: known are {known}, or give the path of a .yaml file")
    return read_recipe(path, overrides)


def make_plan(
    arch: str,
    *,
    recipe: str | None = None,
    data: str | None = None,
    output: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    resume: bool = False,
) -> Plan:
    """Fill in what was not given on the command line: from the run folder when resuming, else defaults.

    The defaults: the digits, :func:`recipe_name`, ``runs/`` and :func:`run_name`, seed 0. An ``InputError`` says that
    the recipe is wrong, or that there is nothing to resume.
    """
    if arch.startswith(FOLDERS):
        weights, name = f"checkpoint.init_from={arch}", _folders.saved_network(_folders.local(arch))[0]
        raise InputError(f"--arch {arch} brings its weights; to train on: --arch {name} --set {weights}")
    wanted = data or "digits"
    name = recipe or recipe_name(arch, wanted)
    folder = Path(output or os.path.join("runs", run_name(arch, name, wanted, seed or 0)))
    if resume and not folder.is_dir():
        raise InputError(
            f"nothing to resume: {folder} does not exist; name the run's folder with --output, "
            "or start without --resume"
        )
    # torchrun starts the same command again when a process died.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume and recipe is None and (folder / RECIPE).is_file():
        chosen = saved_recipe(folder, overrides)
        config = load_config(folder)
        name, wanted = config.recipe, data or config.data
        seed = saved_manifest(folder)["seed"] if seed is None else seed
    else:
        chosen = load_recipe(name, overrides)
    return Plan(arch, chosen, name, wanted, seed or 0, folder, resume)


def recipe_name(arch: str, data: str) -> str:
    """The recipe where none is named: that of an embedded data set, else that of the architecture's family."""
    return data.partition("@")[0] if is_embedded(data) else default_recipe(arch)


def run_name(arch: str, recipe: str, data: str, seed: int) -> str:
    """``ARCH-RECIPE-DATA-seedN``: CIFAR-10 and CIFAR-100 under one recipe are two runs.

    DATA is the last part of ``data``; it is not repeated where the recipe has its name.
    """
    stem = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
    place = [] if data == stem else [file_name(os.path.basename(os.path.abspath(data)))]
    return "-".join([file_name(arch), stem, *place, f"seed{seed}"])


def file_name(text: str) -> str:
    """A text as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._+=,@-]", "-", text)
