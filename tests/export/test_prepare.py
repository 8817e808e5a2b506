"""Operators that only rename a tensor are removed, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_sk.export.prepare import drop_aliases


class _Slices(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        whole = x[:, :8] + 1  # of eight channels
        part = x[:, 2:] * 2
        return whole[:, 0:100], part + x[:, ::2].sum()


def test_only_slices_that_take_everything_go() -> None:
    image = torch.randn(1, 8, 4, 4)
    for decomposed in (False, True):
        program = torch.export.export(_Slices(), (image,))
        if decomposed:
            program = program.run_decompositions({})
        drop_aliases(program)
        names = [getattr(node.target, "_opname", "") for node in program.graph.nodes]
        # The one that is an output stays.
        assert (names.count("slice"), names.count("alias")) == (2, 1)
        for got, expected in zip(program.module()(image), _Slices()(image), strict=True):
            assert torch.equal(got, expected)
