"""The whole way: a checkpoint of timm, selective kernels, training, files for phones, a photograph, and timm again."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.models import save_for_hf

import edge_sk
from deploy.classify import main as classify
from deploy.export import main as export
from edge_sk.export.network import from_run
from recipes.publish import main as publish
from recipes.train import main as train
from tests.models.test_folders import same


@pytest.mark.slow
def test_from_a_checkpoint_of_timm_to_phones_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, run, files, published = (tmp_path / name for name in ("timm", "run", "files", "published"))
    save_for_hf(timm.create_model("mobilenetv2_050", num_classes=10), checkpoint, safe_serialization=True)
    # 1,437 training images: five steps.
    fields = [f"checkpoint.init_from=local-dir:{checkpoint}", "schedule.epochs=1", "schedule.warmup_epochs=0"]
    fields += ["data.batch_size=256", "data.eval_batch_size=360"]
    assert train(["--arch", "sk_mobilenetv2_0.5", "--output", str(run), "--set", *fields]) == 0
    both = ["--formats", "pte", "mlpackage", "--precisions", "fp32"]
    assert export(["--checkpoint", str(run), *both, "--output", str(files)]) == 0
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "photo.jpg")
    answers = []
    for file in sorted(files.glob("*.pte")) + sorted(files.glob("*.mlpackage")):
        capsys.readouterr()
        assert classify([str(file), str(tmp_path / "photo.jpg")]) == 0
        answers.append(capsys.readouterr().out)
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert publish([str(run), "--to", str(published), "--files", str(files)]) == 0
    assert "exported files: 2" in capsys.readouterr().out
    edge_sk.register_with_timm()
    same(timm.create_model(f"local-dir:{published}", pretrained=True), from_run(run).model)
