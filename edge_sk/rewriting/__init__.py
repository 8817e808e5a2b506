"""Rewrite a trained network for phones: :func:`edge_sk.reparameterize`, its steps, one file each, and their check.

A step takes an fx ``GraphModule`` in eval mode whose nodes know rank and type (:mod:`edge_sk.rewriting.graph`), changes
it in place and returns how many places it changed.
"""

from edge_sk.rewriting._reparameterize import STEPS, reparameterize
from edge_sk.rewriting.verification import Rewrites

__all__ = ["STEPS", "Rewrites", "reparameterize"]
