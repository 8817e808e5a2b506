"""Does SK pay, and does the kernel choice follow the object: the experiments, and the page that says what came out.

The experiments are commands of recipes/compare.py and recipes/attention.py; what they find is read from their records.
"""
