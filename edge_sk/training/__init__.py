"""Train a network: recipes, data, the loop, run folders."""
