"""The steps of :func:`edge_sk.reparameterize`, one file each: exact rewrites into what phones run fast.

A step takes an fx ``GraphModule`` in eval mode, changes it in place and returns how many places it changed.
"""
