"""Seed every random draw from its place in the run, so that a resumed run needs no generator's state."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Hash ``parts`` (a seed and what it is for: an epoch, a step, a sample) to a seed below 2**63."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(*parts: int | str) -> None:
    """Seed Python's, NumPy's and torch's global generators (all devices) with ``derive_seed(*parts)``."""
    torch.manual_seed(seed_sample(*parts))


def seed_sample(*parts: int | str) -> int:
    """Seed as ``seed_everything``, but of torch the CPU only: cheap enough for every image."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 timm's transforms and mixup draw from the legacy generator
    torch.default_generator.manual_seed(seed)
    return seed
