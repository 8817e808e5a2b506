"""Does SK pay, and does the kernel choice follow the object: the experiments, their statistics, and the page on both.

The experiments are commands of recipes/compare.py and recipes/attention.py; the page is written from their records.
"""
