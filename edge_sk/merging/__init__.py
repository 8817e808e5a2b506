r"""Merge units whose selection does not matter: attention fixed to its mean, branches added into one convolution.

A trained unit of linear branches computes :math:`V = \sum_m a_m \odot B_m(x)`, with :math:`B_m` a convolution and its
batch norm. With :math:`a_m` fixed to its mean over images, the sum is one convolution, exactly; its extent is that of
the largest branch. What becomes of a unit:

- ``select``: it stays as it is
- ``merge``: one convolution, exact for the fixed attention; of branches with an activation the gate alone goes
- ``cut``: that convolution, fitted with the taps of the host's own kernel: the cost of the plain network

Units are taken one after another, first the one whose merging changes least for the microseconds that it saves. That is
measured on the network's output, after each unit anew for those that could be next: the attention's spread does not
tell which unit matters.
"""

from edge_sk.merging._merge import merge, path
from edge_sk.merging.convolution import cut, host_kernel, merged
from edge_sk.merging.report import Effect, Report, Step, Unit

__all__ = ["Effect", "Report", "Step", "Unit", "cut", "host_kernel", "merge", "merged", "path"]
