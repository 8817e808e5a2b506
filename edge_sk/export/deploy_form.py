"""What every exported file starts from: the network with its preprocessing inside, in the form phones run fast."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from torch import nn

from edge_sk.reparameterize import reparameterize
from edge_sk.rewrites.normalize import Normalize


def with_preprocessing(model: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network as an application feeds it: images in [0, 1], the normalisation inside; the reference of parity.

    Args:
        model: The trained network, in eval mode; it is shared, not copied.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
    """
    parts = [("normalize", Normalize(mean, std)), ("network", model)]
    return nn.Sequential(collections.OrderedDict(parts)).eval()


def deploy_form(model: nn.Module, *, mean: Sequence[float], std: Sequence[float], softmax: bool = False) -> nn.Module:
    """The same function, rewritten for deployment; ``.reparameterized`` tells which rewrites applied.

    Args:
        model: The trained network; it is not changed.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
        softmax: End in probabilities instead of logits.
    """
    form = reparameterize(with_preprocessing(model, mean=mean, std=std))
    if not softmax:
        return form
    probabilities = nn.Sequential(collections.OrderedDict([("logits", form), ("softmax", nn.Softmax(dim=1))]))
    probabilities.reparameterized = form.reparameterized
    return probabilities.eval()
