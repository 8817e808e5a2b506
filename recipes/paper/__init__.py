"""Li et al., *Selective Kernel Networks*, CVPR 2019, table by table, with our count beside every figure.

https://arxiv.org/abs/1903.06586. Error rates are always the paper's; parameters and MACs are ours,
counted by ``edge_sk.profile`` on the network that ``edge_sk.create_model`` builds.
"""
