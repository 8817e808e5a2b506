"""The batch-norm statistics of untrained networks."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

import edge_sk
from edge_sk.export.network import Network, from_arch, with_statistics


def test_an_untrained_network_gets_statistics_and_a_trained_one_keeps_its_own() -> None:
    model = edge_sk.create_model("se_shufflenetv2_0.5").eval()
    network = dataclasses.replace(from_arch("se_shufflenetv2_0.5"), model=model, input_size=(3, 64, 64))
    images = next(iter(network.images(split="test", limit=16)))[0]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))

    def varying(model: nn.Module) -> float:
        """How much of the logits depends on the image."""
        with torch.no_grad():
            logits = model((images - mean) / std)
        return ((logits - logits.mean(0)).square().mean() / logits.square().mean()).sqrt().item()

    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    changed = with_statistics(network)
    assert varying(network.model) < 0.01 < 0.03 < varying(changed.model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.model.state_dict().items())
    again = with_statistics(network).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in changed.model.state_dict().items())
    trained = dataclasses.replace(network, weights="a-run")
    assert with_statistics(trained) is trained


def test_batch_norms_vary_on_demand() -> None:
    network = dataclasses.replace(from_arch("resnext26"), input_size=(3, 32, 32))
    plain, varied = (
        [module for module in with_statistics(network, vary=vary).model.modules() if isinstance(module, nn.BatchNorm2d)]
        for vary in (False, True)
    )
    assert min(norm.weight.min() for norm in plain) == 0.0  # residual branches that end in a zero
    for norm in varied:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.weight.min() > 0.5
        assert norm.running_mean.count_nonzero() == norm.num_features
        assert 1.5 < norm.running_var.max() / norm.running_var.min() <= 3.0


def test_batch_norms_without_statistics_or_affine_part() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, affine=False),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Dropout(),
    )
    shape = (3, 8, 8)
    network = Network(arch="x", model=model.train(), weights="untrained", input_size=shape, mean=(0.5,), std=(0.5,))
    changed = with_statistics(network, vary=True).model
    plain, batch = changed[1], changed[3]
    assert plain.weight is None
    assert 1.5 < plain.running_var.max() / plain.running_var.min() <= 3.0
    assert batch.running_var is None
    assert batch.weight.unique().numel() == 4
    assert not any(module.training for module in changed.modules())
    assert all(module.training for module in model.modules())
