"""What every exported file starts from: the network with its preprocessing inside, in the form phones run fast."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from torch import nn

from edge_sk import running
from edge_sk.export.network import Network
from edge_sk.rewriting import reparameterize
from edge_sk.rewriting.normalize import Normalize


def with_preprocessing(model: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network as an application feeds it: images in [0, 1], the normalisation inside; the reference of parity.

    Args:
        model: The trained network, in eval mode; it is shared, not copied.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
    """
    parts = [("normalize", Normalize(mean, std)), ("network", model)]
    return nn.Sequential(collections.OrderedDict(parts)).eval()


def deploy_form(network: Network, *, softmax: bool = False) -> nn.Module:
    """The same function, rewritten for deployment; ``.reparameterized`` tells which rewrites applied.

    Args:
        network: The trained network; it is not changed.
        softmax: End in probabilities instead of logits.
    """
    whole = with_preprocessing(network.model, mean=network.mean, std=network.std)
    form = reparameterize(whole, running.random_images(whole, (2, *network.input_size)))
    if not softmax:
        return form
    probabilities = nn.Sequential(collections.OrderedDict([("logits", form), ("softmax", nn.Softmax(dim=1))]))
    probabilities.reparameterized = form.reparameterized
    return probabilities.eval()
