"""What a network costs: parameters, multiply-accumulates (MACs), activations, per module.

``python -m edge_sk.profiling sk_shufflenetv2_1.0 shufflenetv2_1.0`` prints one comparison.

Conventions, all from one trace by `fvcore <https://github.com/facebookresearch/fvcore>`_:

- **MACs**: multiplications of convolutions and matrix products; a bias adds none, and a batch norm none,
  because at inference it folds into its convolution. What the SKNet and ShuffleNetV2 papers call FLOPs;
  half of what ``torch.utils.flop_counter`` prints.
- **fvcore's own total** is larger: its ``total()`` adds 2 per element of a batch norm, 1 per element that
  enters an adaptive average pool, and 4 or 5 per element of layer and group norms and of bilinear resizing.
  Kept as :attr:`Profile.fvcore_total`.
- **Activations**: elements that convolutions and matrix products write (fvcore's convention).
- **Elementwise work**: elements that every other computing operator goes over (additions, multiplications,
  activation functions, pooling, softmax): the larger of its first input and its output. No MAC count shows
  it; latency does.
- **Gates**: MACs inside channel attention (SK's gate, squeeze-and-excitation, CBAM, BAM); part of the MACs.
- **Unsupported**: operators that compute but that neither fvcore nor this package counts, for instance fused
  attention.
"""

from edge_sk.profiling._profile import profile
from edge_sk.profiling.command import main
from edge_sk.profiling.cost import FeatureMap, ModuleCost, ModuleTable, Profile
from edge_sk.profiling.tables import comparison, print_table

__all__ = [
    "FeatureMap",
    "ModuleCost",
    "ModuleTable",
    "Profile",
    "comparison",
    "main",
    "print_table",
    "profile",
]
