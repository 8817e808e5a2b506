"""A published folder is the run's network, to us and to timm, with a card that says what it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm

import edge_sk
from edge_sk.export.network import from_run
from edge_sk.export.record import record_of, write_record
from edge_sk.files import file_digest
from edge_sk.training.recipe import make_recipe, recipe_to_yaml
from edge_sk.training.run import RECIPE
from recipes.publish import main
from tests.export.test_record import _record
from tests.models.test_folders import run_folder, same


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    run_folder(folder, "sk_shufflenetv2_0.5")
    (folder / RECIPE).write_text(recipe_to_yaml(make_recipe({"schedule": {"epochs": 2}})))
    (folder / "metrics.csv").write_text("epoch,test_top1,seconds\n1,50.5,1\n2,61.25,2\n")
    (folder / "checkpoint.pt").write_text("for --resume")
    return folder


def exported(run: Path, folder: Path, stem: str, *, digest: str | None = None) -> None:
    """Two files with records, as of an export."""
    folder.mkdir(exist_ok=True)
    for ending in ("_xnnpack_fp32.pte", "_coreml_fp16.mlpackage"):
        path = folder / f"{stem}{ending}"
        if ending.endswith("pte"):
            path.write_text("program")
        else:
            (path / "Data").mkdir(parents=True)
            (path / "Data" / "model").write_text("program")
        sha256 = digest or from_run(run).weights_digest()
        write_record(path, _record(file=path.name, weights_sha256=sha256, sha256=file_digest(path)))


def test_what_is_published_is_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(run, tmp_path / "exports", "net")
    exported(run, tmp_path / "exports", "other", digest="of another run")
    out = tmp_path / "published"
    assert main([str(run), "--to", str(out), "--files", str(tmp_path / "exports")]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}: sk_shufflenetv2_0.5, exported files: 2\n"
    assert re.findall(r"left out: \S*/(\w+)\.", printed.err) == ["other_xnnpack_fp32", "other_coreml_fp16"]
    files = {"net_xnnpack_fp32.pte", "net_coreml_fp16.mlpackage"}
    about = {"model.safetensors", "config.json", "README.md", RECIPE, "metrics.csv"}
    assert {path.name for path in out.iterdir()} == about | files | {f"{file}.json" for file in files}
    for file in files:
        record_of(out / file)
    model = from_run(run).model
    edge_sk.register_with_timm()
    same(timm.create_model(f"local-dir:{out}", pretrained=True), model)
    same(edge_sk.create_model(f"local-dir:{out}"), model)
    assert from_run(out).weights_digest() == from_run(run).weights_digest()
    card = (out / "README.md").read_text()
    cost = edge_sk.profile(model, (1, 3, 48, 40))
    for fact in (
        "61.25 %, after 2 epochs",
        f"{cost.params / 1e6:.2f} M",
        f"{cost.macs / 1e6:.1f} M",
        "net_coreml_fp16",
    ):
        assert fact in card
    assert card.startswith("---\nlibrary_name: timm\n")
    # The card's own lines load it.
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(lines, names)
    same(names["model"], model)


def test_a_graft_is_timms_after_registration(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    model = run_folder(run, "timm:mobilenetv2_050@kernels=auto")
    assert main([str(run), "--to", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "not known to be finished" in card
    edge_sk.register_with_timm()
    same(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True), model)


def test_nothing_is_overwritten_and_bad_input_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    (tmp_path / "empty").mkdir()
    rows = (run / "metrics.csv").read_text()
    for arguments, message in (
        ([str(run), "--to", str(tmp_path / "taken")], "taken exists and is not empty: give a new folder"),
        ([str(run), "--to", str(run / RECIPE)], "recipe.yaml exists and is not empty"),
        (["nowhere", "--to", str(tmp_path / "new")], "nowhere does not exist"),
        ([str(run), "--to", str(tmp_path / "new"), "--files", str(tmp_path / "taken")], "has no file with a record"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    (run / "metrics.csv").write_text(rows.rsplit("2,", 1)[0])
    assert main([str(run), "--to", str(tmp_path / "new")]) == 2
    assert "is not finished (1 of 2 epochs)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine"]
    assert main([str(run), "--to", str(tmp_path / "empty"), "--unfinished"]) == 0
    assert "**The training is not finished: 1 of 2 epochs.**" in (tmp_path / "empty" / "README.md").read_text()


def test_pushed_to_the_hub(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[Any] = []

    class Api:
        def create_repo(self, repository: str, **options: Any) -> None:
            asked.append((repository, options))

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
            asked.append((repo_id, {path.name for path in folder_path.iterdir()}))
            assert 'edge_sk.create_model("hf-hub:someone/net")' in (folder_path / "README.md").read_text()
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert main([str(run), "--to", "hf-hub:someone/net", "--private"]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/someone/net\n"
    files = {"model.safetensors", "config.json", "README.md", RECIPE, "metrics.csv"}
    assert asked == [("someone/net", {"private": True, "exist_ok": True}), ("someone/net", files)]
    monkeypatch.setattr(Api, "upload_folder", lambda *_, **__: (_ for _ in ()).throw(OSError("403 Forbidden\nmore")))
    assert main([str(run), "--to", "hf-hub:someone/net"]) == 2
    assert "hf-hub:someone/net cannot be written: 403 Forbidden; hf auth login gives a token" in capsys.readouterr().err


def test_the_folder_of_the_training_images_stays_private(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run_folder(run, "shufflenetv2_0.5")
    text = (run / "config.json").read_text().replace('"data": "digits"', '"data": "/home/someone/flowers"')
    (run / "config.json").write_text(text)
    (run / RECIPE).write_text(recipe_to_yaml(make_recipe({"schedule": {"epochs": 1}})))
    assert main([str(run), "--to", str(tmp_path / "out"), "--unfinished"]) == 0
    for file in ("config.json", "README.md"):
        assert "someone" not in (tmp_path / "out" / file).read_text()
        assert "flowers" in (tmp_path / "out" / file).read_text()
    assert "/home/someone" in (run / "config.json").read_text()
