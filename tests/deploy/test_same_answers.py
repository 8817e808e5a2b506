"""The promise to phones: one trained network, two files, the same answer to every test image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sk.export import network, to_mlpackage, to_pte
from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.executorch.pte import run_pte
from recipes.train import main as train


@pytest.mark.slow
def test_pte_and_mlpackage_answer_alike_on_all_test_digits(tmp_path):
    run = tmp_path / "run"
    assert train(["--arch", "sk_shufflenetv2_1.0", "--output", str(run)]) == 0
    trained = network.from_run(run)
    pte = to_pte(trained, tmp_path)
    package = to_mlpackage(trained, tmp_path)
    images = torch.cat([batch for batch, _ in trained.images(split="test", limit=None)])
    assert len(images) == 360
    from_pte = run_pte((tmp_path / pte.file).read_bytes(), images).argmax(1)
    program = MilProgram.load(tmp_path / package.file)
    assert program.labels is not None
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    answers = [program.predict(picture).label or "" for picture in pixels]
    np.testing.assert_array_equal(from_pte.numpy(), [program.labels.index(answer) for answer in answers])
    assert pte.accuracy is not None
    assert package.accuracy is not None
    assert pte.accuracy.top1 == package.accuracy.top1 > 0.95
