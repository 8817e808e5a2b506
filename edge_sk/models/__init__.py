"""The zoo: selective-kernel networks and the plain and SE networks they are compared with."""

from edge_sk.models._create import create_model
from edge_sk.models._registry import default_recipe, list_models

__all__ = ["create_model", "default_recipe", "list_models"]
