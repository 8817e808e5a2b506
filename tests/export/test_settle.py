"""Untrained networks are given the scale of trained ones."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from edge_sk.export.network import from_arch
from edge_sk.export.settle import settle


def test_an_untrained_network_is_settled_and_a_trained_one_is_left() -> None:
    network = dataclasses.replace(from_arch("se_shufflenetv2_0.5"), input_size=(3, 64, 64))
    images = next(iter(network.images(split="test", limit=16)))[0]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))

    def varying(model: nn.Module) -> float:
        """How much of the logits depends on the image."""
        with torch.no_grad():
            logits = model((images - mean) / std)
        return ((logits - logits.mean(0)).square().mean() / logits.square().mean()).sqrt().item()

    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    settled = settle(network)
    assert varying(network.model) < 0.01 < 0.03 < varying(settled.model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.model.state_dict().items())
    again = settle(network).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in settled.model.state_dict().items())
    trained = dataclasses.replace(network, weights="a-run")
    assert settle(trained) is trained


def test_batch_norms_vary_on_demand() -> None:
    network = dataclasses.replace(from_arch("resnext26"), input_size=(3, 32, 32))
    plain, varied = (
        [module for module in settle(network, vary=vary).model.modules() if isinstance(module, nn.BatchNorm2d)]
        for vary in (False, True)
    )
    assert min(norm.weight.min() for norm in plain) == 0.0  # residual branches that end in a zero
    for norm in varied:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.weight.min() > 0.5
        assert norm.running_mean.count_nonzero() == norm.num_features
        assert 1.5 < norm.running_var.max() / norm.running_var.min() <= 3.0
