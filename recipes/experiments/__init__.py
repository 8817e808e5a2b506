"""Experiments on two questions: does SK pay, and does the kernel choice follow the object?

``experiments.yaml`` lists them; recipes/compare.py and recipes/attention.py run them and write records;
recipes/evidence.py writes the page from the records.
"""
