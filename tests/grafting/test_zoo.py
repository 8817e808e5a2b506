"""Networks made by name: selective kernels on a plain network's weights, grafts of other libraries' networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edge_sk
from edge_sk import InputError, grafting, running
from tests.grafting.networks import LivedIn, answering, block, units


def test_zoo_starts_from_plain_weights_by_the_same_mechanism(tmp_path: Path, lived_in: LivedIn, digits: Tensor) -> None:
    from safetensors.torch import save_file

    plain = lived_in(edge_sk.create_model("resnext26", num_classes=10))
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    sk = edge_sk.create_model("sknet26", num_classes=10, init_from=tmp_path / "plain.safetensors").eval()
    with torch.no_grad():
        torch.testing.assert_close(sk(digits[:2]), plain(digits[:2]), rtol=1e-4, atol=1e-4)
    assert [str(kernel) for kernel in units(sk)[0].kernels] == ["3", "3d2"]


@pytest.mark.parametrize(
    "name", ["shufflenetv2_0.5", "mobilenetv2_0.5", "mobilenetv3_small_1.0", "mobilenetv4_conv_small"]
)
@pytest.mark.parametrize("options", ["", "@sk_units=all", "@select=false", "@kernels=5+7"])
def test_mobile_networks_start_exactly_as_the_plain_one(
    name: str, options: str, tmp_path: Path, lived_in: LivedIn, digits: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import save_file

    images = torch.cat([digits[:8], torch.randn_like(digits[:8])])
    plain = answering(lived_in(edge_sk.create_model(name, num_classes=10)), images)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    with caplog.at_level("INFO"):
        sk = edge_sk.create_model(f"sk_{name}{options}", num_classes=10, init_from=tmp_path / "plain.safetensors")
    sk, plain = sk.eval().double(), plain.double()
    with torch.no_grad():
        assert running.difference([plain(digits[:16].double())], [sk(digits[:16].double())]) < 1e-12
    (record,) = [record for record in caplog.records if "starts from" in record.message]
    assert record.levelname == "INFO"
    assert isinstance(record.args, tuple)
    assert record.args[-1] < 1e-4  # type: ignore[operator]


def test_an_activation_in_the_branches_is_an_option_and_what_it_changes_is_said(
    tmp_path: Path, lived_in: LivedIn, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import save_file

    plain = lived_in(edge_sk.create_model("shufflenetv2_0.5", num_classes=10))
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    edge_sk.create_model("sk_shufflenetv2_0.5@act=relu", num_classes=10, init_from=tmp_path / "plain.safetensors")
    (record,) = caplog.records
    assert record.levelname == "WARNING"  # the plain network has no activation there
    for name, act in (("sk_shufflenetv2_0.5@act=relu", nn.ReLU), ("sk_mobilenetv2_0.5@act=relu6", nn.ReLU6)):
        branches = [branch for unit in units(edge_sk.create_model(name)) for branch in unit.branches]
        assert all(type(branch.get_submodule("act")) is act for branch in branches)
    linear = edge_sk.create_model("sknet26@act=none")
    assert not any(hasattr(branch, "act") for unit in units(linear) for branch in unit.branches)


def test_names_of_other_libraries_take_a_graft(tmp_path: Path, lived_in: LivedIn, digits: Tensor) -> None:
    from safetensors.torch import save_file

    plain = lived_in(edge_sk.create_model("timm:mobilenetv3_small_050", num_classes=10))
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    name = "timm:mobilenetv3_small_050@kernels=3+5,reduction=8"
    every = "timm:mobilenetv3_small_050@kernels=auto"
    grafted = edge_sk.create_model(every, num_classes=10, init_from=tmp_path / "plain.safetensors").eval()
    with torch.no_grad():
        torch.testing.assert_close(grafted(digits[:2]), plain(digits[:2]), rtol=1e-4, atol=1e-4)
    save_file(grafted.state_dict(), tmp_path / "grafted.safetensors")
    again = edge_sk.create_model(every, num_classes=10, init_from=tmp_path / "grafted.safetensors").eval()
    with torch.no_grad():
        assert torch.equal(again(digits[:2]), grafted(digits[:2]))
    assert {str(kernel) for unit in units(edge_sk.create_model(name)) for kernel in unit.kernels} == {"3", "5"}
    with pytest.raises(InputError, match="reduction belong to selective kernels: give kernels too"):
        edge_sk.create_model("timm:mobilenetv3_small_050@reduction=8")
    with pytest.raises(InputError, match=r"nothing to graft|no grouped or depthwise"):
        edge_sk.create_model("torchvision:resnet18@kernels=3+5")
    with pytest.raises(InputError, match="init='none' is not known"):
        edge_sk.create_model("timm:mobilenetv3_small_050@kernels=3+5,init=none")


@pytest.mark.parametrize("name", ["timm:convnext_atto", "timm:starnet_s1"])
def test_networks_without_batch_norm_start_from_plain_weights(
    name: str, tmp_path: Path, lived_in: LivedIn, digits: Tensor
) -> None:
    from safetensors.torch import save_file

    images = digits[:2].repeat(1, 1, 2, 2).double()
    plain = answering(lived_in(edge_sk.create_model(name, num_classes=10)), images.float())
    for parameter in plain.parameters():
        if 0 < parameter.detach().abs().max() <= 1e-4:  # layer scale: blocks count for a millionth
            nn.init.constant_(parameter, 0.3)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    every = f"{name}@kernels=auto"
    grafted = edge_sk.create_model(every, num_classes=10, init_from=tmp_path / "plain.safetensors").eval()
    with torch.no_grad():
        # The weights are float32; a batch norm's share is rounded to it once.
        assert running.difference([plain.double()(images)], [grafted.double()(images)]) < 1e-8
        for unit in units(grafted):  # what was trained comes back, too
            for parameter in unit.parameters():
                parameter += 0.01 * torch.randn_like(parameter)  # with more, a star of products is chaotic
        expected = grafted.float()(images.float())
        assert running.difference([plain.float()(images.float())], [expected]) > 1e-3
        save_file(grafted.state_dict(), tmp_path / "grafted.safetensors")
        again = edge_sk.create_model(every, num_classes=10, init_from=tmp_path / "grafted.safetensors").eval()
        assert torch.equal(again(images.float()), expected)
    deployed = edge_sk.reparameterize(again, images.float())
    assert deployed.reparameterized["fuse_units"] == len(units(again))  # type: ignore[index]
    torch.testing.assert_close(deployed(images.float()), expected, rtol=1e-4, atol=1e-4)


def test_graft_by_name_reads_images_of_any_channels(digits: Tensor) -> None:
    grey = edge_sk.create_model("timm:mobilenetv3_small_050@kernels=3+5", num_classes=10, in_chans=1).eval()
    assert len(units(grey)) == 11
    assert grey(digits[:2, :1]).shape == (2, 10)
    assert grey.default_cfg["input_size"] == (1, 224, 224)
    assert edge_sk.profile(grey).input_size == (1, 1, 224, 224)
    in_place = block()
    in_place[0] = nn.Conv2d(5, 8, 1)
    grafting.graft_(in_place, input_size=(5, 16, 16))
    assert len(units(in_place)) == 1


def test_timms_skresnext_is_sknet(tmp_path: Path, lived_in: LivedIn, digits: Tensor) -> None:
    import timm

    theirs = lived_in(timm.create_model("skresnext50_32x4d", num_classes=10))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = edge_sk.create_model("sknet50", num_classes=10, init_from=tmp_path / "theirs.pt").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(digits[:2]), theirs(digits[:2]), rtol=1e-4, atol=1e-5)


def test_mismatches_of_weights_are_named_and_counted(tmp_path: Path) -> None:
    state = edge_sk.create_model("shufflenetv2_0.5").state_dict()
    state["conv1.0.weight"] = state["conv1.0.weight"][:, :1]
    state["stage2.0.branch1.0.weight"] = state["stage2.0.branch1.0.weight"][:1]
    torch.save(state, tmp_path / "shapes.pt")
    with pytest.raises(InputError, match=r"of this network: conv1.0.weight is .* here, stage2.0.branch1.0.weight is"):
        edge_sk.create_model("shufflenetv2_0.5", init_from=tmp_path / "shapes.pt")
    for part in ("weight", "bias", "running_mean"):
        del state[f"conv1.1.{part}"]
    torch.save(state | {"extra": torch.zeros(1)}, tmp_path / "names.pt")
    with pytest.raises(InputError, match=r"conv1.1.weight is missing there and \(24,\) here, .*; and 3 more$"):
        edge_sk.create_model("shufflenetv2_0.5", init_from=tmp_path / "names.pt")
    state = edge_sk.create_model("shufflenetv2_0.5").state_dict() | {"extra": torch.zeros(1)}
    torch.save(state, tmp_path / "extra.pt")
    with pytest.raises(InputError, match=r"of this network: extra is \(1,\) there and missing here$"):
        edge_sk.create_model("shufflenetv2_0.5", init_from=tmp_path / "extra.pt")


@pytest.mark.slow
def test_grafted_network_trains_and_reloads_from_its_run(tmp_path: Path) -> None:
    from edge_sk.training.run import load_run
    from recipes.train import main

    arch, plain, run = "timm:mobilenetv3_small_050", str(tmp_path / "plain"), str(tmp_path / "run")
    short = ["schedule.epochs=1", "optim.lr=0.02"]
    assert main(["--arch", arch, "--output", plain, "--set", *short]) == 0
    kept = [*short, f"checkpoint.init_from={plain}"]
    assert main(["--arch", f"{arch}@kernels=3+5", "--output", run, "--set", *kept]) == 0
    (tmp_path / "plain").rename(tmp_path / "gone")  # the run folder alone must do
    assert len(units(load_run(run).model)) == 11
