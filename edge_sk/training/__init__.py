"""Training: recipes, data, the loop, checkpoints."""
