"""Where an exported network's weights and images come from."""

from __future__ import annotations

import io
import json
import re
import tarfile
import types
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import edge_sk
from edge_sk.errors import InputError
from edge_sk.export import to_mlpackage, to_pte
from edge_sk.export.network import MOST_IMAGES, UNTRAINED, Network, from_arch, from_run
from edge_sk.export.prepare import reference
from edge_sk.export.prove import prove
from edge_sk.training.recipe import make_recipe, recipe_to_yaml
from edge_sk.training.run import RECIPE, RunConfig, save_config, save_weights

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return edge_sk.create_model("shufflenetv2_0.5", num_classes=3).state_dict()


def save_run(folder: Path, state: dict[str, torch.Tensor], data: str, *, epochs: int = 2, **options: Any) -> Path:
    """A run folder after so many of two epochs."""
    config = RunConfig(
        arch="shufflenetv2_0.5", num_classes=3, classes=None, in_chans=3, input_size=(3, 32, 32), mean=(0.5,) * 3,
        std=(0.5,) * 3, interpolation="bilinear", crop_pct=1.0, recipe="light", data=data, edge_sk_version="0",
    )  # fmt: skip
    folder.mkdir(parents=True)
    save_config(folder, config)
    save_weights(folder, state)
    (folder / RECIPE).write_text(recipe_to_yaml(make_recipe({"data": options, "schedule": {"epochs": 2}})))
    if epochs:
        rows = "".join(f"{epoch},50.0,{epoch}.5\n" for epoch in range(1, epochs + 1))
        (folder / "metrics.csv").write_text(f"epoch,test_top1,seconds\n{rows}")
    return folder


def _shards(folder: Path, names: dict[str, int]) -> None:
    """One tar per name with so many images; the label is the image's number modulo the classes."""
    folder.mkdir()
    for name, count in names.items():
        with tarfile.open(folder / name, "w") as tar:
            for number in range(count):
                picture = io.BytesIO()
                Image.new("RGB", (32, 32), (number, 0, 0)).save(picture, "png")
                for ending, content in (("png", picture.getvalue()), ("cls", str(number % 3).encode())):
                    info = tarfile.TarInfo(f"{number:04d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the tars open
def test_a_run_on_shards_is_read_as_it_was_trained(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """The splits have names that only the run's recipe knows."""
    pytest.importorskip("webdataset")
    _shards(tmp_path / "shards", {"a.tar": 20, "b.tar": 90})
    run = save_run(
        tmp_path / "run", state, f"wds/{tmp_path / 'shards'}", num_classes=3, train_split="a.tar|20",
        val_split="b.tar|90",
    )  # fmt: skip
    network = from_run(run)
    assert network.knows_data
    json.dumps(network.data_options)
    red = torch.cat([(images[:, 0, 0, 0] * 255).round() for images, _ in network.images(split="train", limit=7)])
    assert red.tolist() == [*range(7)]
    found = list(network.test_images(None))
    assert [len(labels) for _, labels in found] == [64, 26]
    assert torch.cat([labels for _, labels in found]).tolist() == [number % 3 for number in range(90)]


def test_embedded_data_need_no_recipe(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    run = save_run(tmp_path / "run", state, "digits", root="elsewhere")
    (run / RECIPE).unlink()
    assert from_run(run).data_options == {}
    with pytest.raises(InputError, match=r"has no recipe\.yaml"):
        from_run(run, data=str(tmp_path))


def test_a_run_called_untrained_is_trained(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = from_run(save_run(tmp_path / UNTRAINED, state, "digits"))
    assert network.trained
    assert network.weights != UNTRAINED
    assert tmp_path / network.weights == tmp_path / UNTRAINED
    monkeypatch.chdir(save_run(tmp_path / "named", state, "digits"))
    assert from_run(".").weights == "named"
    assert from_run(".").trained


@pytest.mark.parametrize("epochs", [0, 1])
def test_an_unfinished_run_is_taken_on_demand_only(tmp_path: Path, state: dict[str, torch.Tensor], epochs: int) -> None:
    run = save_run(tmp_path / "run", state, "digits", epochs=epochs)
    with pytest.raises(InputError, match=rf"run is not finished \({epochs} of 2 epochs\); continue .* --unfinished"):
        from_run(run)
    assert from_run(run, unfinished=True).training == f"not finished: {epochs} of 2 epochs"


def test_a_run_is_finished_after_its_last_epoch_and_unknown_without_a_recipe(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    run = save_run(tmp_path / "run", state, "digits")
    assert from_run(run).training is None
    (run / RECIPE).unlink()
    assert from_run(run).training == "not known to be finished: the run folder has no recipe.yaml"


def test_trained_weights_need_images_of_their_own(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """Nobody's choice of digits must decide int8 ranges or parity of a network that never saw one."""
    start = save_run(tmp_path / "start", state, "digits")
    trained = from_arch("shufflenetv2_0.5", init_from=str(start))
    for ask in (
        lambda: trained.images(split="train", limit=1),
        lambda: trained.test_images(None),
        lambda: to_mlpackage(trained, tmp_path / "out", precision="palette6"),
        lambda: to_pte(trained, tmp_path / "out", precision="int8"),
    ):
        with pytest.raises(InputError, match=r"trained weights \(.*start\) and no images .*--data"):
            ask()
    assert not (tmp_path / "out").exists()
    named = from_arch("shufflenetv2_0.5", init_from=str(start), data="digits")
    untrained = from_arch("shufflenetv2_0.5")
    for network in (named, untrained):
        assert len(next(network.images(split="train", limit=1))[0]) == 1


def published(kind: str, folder: Path) -> tuple[str, str, torch.nn.Module]:
    """An architecture, weights of three classes as its library saves them, and the network itself."""
    if kind == "torchvision":
        model = torchvision.models.mobilenet_v2(num_classes=3)
        # As in files of the time before torch counted a batch norm's batches.
        old = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
        torch.save(old, folder / "mobilenet_v2-b0353104.pth")
        return "torchvision:mobilenet_v2", str(folder / "mobilenet_v2-b0353104.pth"), model
    model = timm.create_model("mobilenetv1_100", num_classes=3)
    if kind == "timm's checkpoint":
        torch.save({"epoch": 3, "arch": "mobilenetv1_100", "state_dict": model.state_dict()}, folder / "model_best.pth")
        return "timm:mobilenetv1_100", str(folder / "model_best.pth"), model
    names = {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n1": "crane", "n2": "ox", "n3": "crane"}}
    timm.models.save_for_hf(
        model, folder, safe_serialization=kind != "timm's folder, pickled",
        model_config=names, data_config={"input_size": (3, 192, 192), "crop_pct": 0.95, "interpolation": "bicubic"},
    )  # fmt: skip
    return "timm:mobilenetv1_100", f"local-dir:{folder}", model


@pytest.mark.parametrize("kind", ["timm's folder", "timm's folder, pickled", "timm's checkpoint", "torchvision"])
def test_published_weights_bring_what_belongs_to_them(kind: str, tmp_path: Path) -> None:
    """Their number of classes, their names, and how their images are prepared."""
    arch, source, model = published(kind, tmp_path)
    network = from_arch(arch, data="digits", init_from=source)
    assert network.trained
    assert (network.arch, network.weights, network.num_classes) == (arch, source, 3)
    x = torch.randn(2, *network.input_size)
    with torch.no_grad():
        torch.testing.assert_close(network.model(x), model.eval()(x), rtol=0, atol=0)
    images = (network.input_size, network.mean[0], network.crop_pct, network.interpolation)
    if kind.startswith("timm's folder"):
        assert network.labels == ["crane (0)", "ox", "crane (2)"]
        assert images == ((3, 192, 192), 0.5, 0.95, "bicubic")
        assert network.notes == ("accuracy was not counted: digits does not have the network's 3 classes",)
        whole = from_arch(source, data="digits")
        assert (whole.arch, whole.weights, whole.labels) == (arch, source, network.labels)
        assert whole.contract == network.contract
        assert whole.weights_digest() == network.weights_digest()
    else:
        assert network.labels is None
        assert images == ((3, 224, 224), 0.5 if arch.startswith("timm") else 0.485, 0.875, network.interpolation)
        assert "do not say how their images were prepared" in network.notes[0]


def test_downloaded_weights_have_the_names_of_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("mobilenetv4_conv_small").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_args, **_kwargs: state)
    source = "timm:mobilenetv4_conv_small.e1200_r224_in1k"
    # Folders of ImageNet, which are not called as the classes are, but come in their order.
    images = types.SimpleNamespace(classes=[f"n{number:08}" for number in range(1000)])
    monkeypatch.setattr("edge_sk.export.network.open_split", lambda *_: images)
    network = from_arch("sk_mobilenetv4_conv_small", init_from=source, data="imagenet")
    assert (network.knows_data, network.notes) == (True, ())
    cfg = timm.get_pretrained_cfg(source.removeprefix("timm:"))
    assert cfg is not None
    assert (network.mean, network.std, network.crop_pct) == (cfg.mean, cfg.std, cfg.crop_pct)
    assert network.labels is not None
    assert (network.labels[0], len(set(network.labels)), network.labels[134]) == (
        "tench, Tinca tinca",
        1000,
        "crane (134)",
    )
    weights = torchvision.models.mobilenet_v2().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_args, **_kwargs: weights)
    network = from_arch("torchvision:mobilenet_v2", init_from="torchvision:mobilenet_v2.IMAGENET1K_V2")
    assert network.labels is not None
    assert (network.labels[0], len(set(network.labels)), network.crop_pct) == ("tench", 1000, 224 / 232)


@pytest.mark.parametrize(
    ("labels", "folders", "note"),
    [
        (CLASSES, CLASSES, None),
        (None, CLASSES, "the weights do not name their classes: accuracy takes them in the order of "),
        (("ox", "bee", "cat"), CLASSES, "accuracy was not counted: .* calls its classes ant, bee, cat"),
        (CLASSES, CLASSES[:2], "accuracy was not counted: .* does not have the network's 3 classes"),
    ],
)
def test_accuracy_is_counted_where_the_images_have_the_weights_classes(
    labels: tuple[str, ...] | None, folders: tuple[str, ...], note: str | None, state: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:  # fmt: skip
    for split, count in (("train", 1), ("val", 64)):
        for number, name in enumerate(folders):
            (folder := tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (80 * number, index, 99)).save(folder / f"{index}.png")
    start = save_run(tmp_path / "start", state, "digits")
    config = json.loads((start / "config.json").read_text()) | {"classes": labels}
    (start / "config.json").write_text(json.dumps(config))
    network = from_arch("shufflenetv2_0.5", init_from=str(start), data=str(tmp_path))
    counted = note is None or "order of" in note
    assert network.knows_data == counted
    assert len(network.notes) == (note is not None)
    assert re.match(note or "", "".join(network.notes))
    model = reference(network)
    # The file that is proven finds the first class in every image.
    wrong = torch.tensor([9.0, 0.0, 0.0])
    _, accuracy = prove(
        network, lambda images: [wrong.expand(len(images), -1)], file="f", file_format="pte", precision="int8",
        images=None, softmax=False, runtime="test", arithmetic=None, accept=["sqnr_db>=-999", "accuracy_loss<=1"],
    )  # fmt: skip
    if not counted:
        assert accuracy is None
        return
    with torch.no_grad():
        right = sum(int((model(images).argmax(1) == y).sum()) for images, y in network.test_images(None))
    assert accuracy is not None
    assert (accuracy.images, accuracy.top1, accuracy.eager_top1) == (192, 64 / 192, right / 192)


@pytest.mark.parametrize(
    ("arch", "source", "message"),
    [
        ("timm:mobilenetv1_100@pretrained=true", None, "has trained weights as an option; name them with --init-from"),
        ("local-dir:nowhere", None, "nowhere has no config.json"),
        ("timm:mobilenetv1_100", "local-dir:nowhere", "no weights at nowhere"),
        ("local-dir:nowhere", "timm:mobilenetv1_100", "local-dir:nowhere brings its weights"),
    ],
)
def test_weights_that_cannot_be_had(arch: str, source: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_arch(arch, init_from=source)


def test_a_run_whose_data_are_gone_takes_no_others(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    network = from_run(save_run(tmp_path / "run", state, str(tmp_path / "gone")))
    with pytest.raises(InputError, match=r"--data .*gone does not exist"):
        next(network.images(split="train", limit=1))


@pytest.mark.parametrize(
    ("data", "knows", "images", "expected"),
    [
        ("digits", True, None, None),
        ("scaled_digits", True, None, None),
        ("folder", True, None, MOST_IMAGES),
        ("digits", False, None, 64),
        ("folder", False, None, 64),
        ("folder", True, 5000, 5000),
        ("digits", True, 100, 100),
    ],
)
def test_how_many_images(
    data: str, knows: bool, images: int | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Network, "images", lambda self, *, split, limit: asked.append((split, limit)))
    network = Network(
        arch="tiny", model=nn.Identity(), weights="run", input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3,
        data=data, knows_data=knows,
    )  # fmt: skip
    network.test_images(images)
    assert asked == [("test", expected)]
