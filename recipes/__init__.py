"""Scripts to train, evaluate and compare, and the packages that only scripts need: the paper's tables, the experiments.

A script runs as ``python recipes/NAME.py``. It imports what it shares with others as ``recipes.X``: the editable
install makes that importable from any folder.
"""
