"""The call itself: what it keeps of the network, refuses, measures and reports; what can be done with the result."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edge_sk
from edge_sk import InputError, SelectiveKernel, running
from edge_sk.grafting import finding, measure
from tests.grafting.networks import LivedIn, Reads, block, units

ROOT = Path(__file__).resolve().parents[2]


def test_random_start_is_fresh(digits: Tensor, lived_in: LivedIn) -> None:
    model = lived_in(block())
    grafted, report = edge_sk.graft(model, init="random", input_size=16)
    assert not report.exact
    assert report.difference is not None
    assert report.difference > 1e-2
    assert torch.equal(units(grafted)[0].branches[0].get_submodule("bn").weight.detach(), torch.ones(8))
    with pytest.raises(InputError, match="init='copy' is not known"):
        edge_sk.graft(model, init="copy")  # type: ignore[arg-type]


def test_modes_types_and_sharing_of_modules(digits: Tensor, lived_in: LivedIn) -> None:
    model = lived_in(block())
    model.train()
    model[2].eval()  # frozen statistics, a habit of fine-tuning
    state = copy.deepcopy(model.state_dict())
    grafted, _ = edge_sk.graft(model, input_size=16)
    assert (model.training, model[1].training, model[2].training) == (True, True, False)
    unit = units(grafted)[0]
    assert unit.training
    assert not unit.branches[0].get_submodule("bn").training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())

    half, report = edge_sk.graft(lived_in(block()).bfloat16(), input_size=16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert report.difference is not None
    assert report.difference < 2e-2

    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = block()
            self.favourite = self.features[1]

        def forward(self, x: Tensor) -> Tensor:
            x = self.features[0](x)
            return self.features[3](self.features[2](self.favourite(x)))

    aliased = lived_in(Aliased())
    grafted, _ = edge_sk.graft(aliased, input_size=16)
    assert grafted.favourite is grafted.get_submodule("features.1")
    assert isinstance(grafted.favourite, SelectiveKernel)
    with torch.no_grad():
        torch.testing.assert_close(grafted(digits[:2]), aliased(digits[:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_device_is_kept() -> None:
    grafted, report = edge_sk.graft(block().cuda().half().eval(), input_size=16)
    assert {(p.device.type, p.dtype) for p in grafted.parameters()} == {("cuda", torch.float16)}
    assert report.difference is not None
    assert report.difference < 1e-2


def test_what_cannot_be_grafted_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"takes a Python module \(nn.Module\), got str"):
        edge_sk.graft("mobilenet")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"DataParallel: graft model.module"):
        edge_sk.graft(nn.DataParallel(block()))
    with torch.device("meta"):
        meta = block()
    with pytest.raises(InputError, match="meta device"):
        edge_sk.graft(meta)
    with pytest.raises(InputError, match=r"does not run on an input of 2x3x5x5.*input_size"):
        edge_sk.graft(nn.Sequential(block(), nn.Flatten(), nn.Linear(8 * 16 * 16, 2)), input_size=5)
    with pytest.raises(InputError, match=r"is not \(C, H, W\), \(N, C, H, W\) or the side"):
        edge_sk.graft(block(), input_size=(3, 3))
    with pytest.raises(InputError, match="images is no batch"):
        edge_sk.graft(block(), images=torch.zeros(3, 16, 16))
    lazy = nn.Sequential(nn.LazyConv2d(4, 1), *block())
    with pytest.raises(InputError, match="run the model once"):
        edge_sk.graft(lazy)


@pytest.mark.slow
def test_a_compiled_model_is_refused() -> None:
    compiled: Any = torch.compile(block())
    with pytest.raises(InputError, match=r"graft model._orig_mod"):
        edge_sk.graft(compiled)


def test_input_size_is_read_as_profile_reads_it() -> None:
    sizes = [16, (3, 16, 16), (1, 3, 16, 16)]
    assert [edge_sk.graft(block(), input_size=size)[1].input_size for size in sizes] == [(3, 16, 16)] * 3


def test_a_changed_output_is_refused() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = block()

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.features(x), 0.5)  # forgets to ask whether it trains

    with pytest.raises(InputError, match="random in eval mode, or its forward uses a replaced module"):
        edge_sk.graft(Random(), input_size=16)


def test_an_output_that_is_not_finite_is_refused(lived_in: LivedIn, digits: Tensor) -> None:
    model = lived_in(block())
    with pytest.raises(InputError, match=r"is not finite .nan or inf. before or after the graft"):
        edge_sk.graft(model, images=torch.full_like(digits[:2], torch.nan))
    norm = model.get_submodule("2")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data[0] = torch.nan
    with pytest.raises(InputError, match=r"is not finite .nan or inf. before or after the graft"):
        edge_sk.graft(model, input_size=16)


def test_difference_is_nan_wherever_an_output_is_not_finite() -> None:
    fine, bad = torch.ones(3), torch.tensor([1.0, torch.nan, 2.0])
    for before, after in (([fine, bad], [fine, bad]), ([fine, fine], [fine, bad]), ([fine], [fine / 0])):
        assert math.isnan(running.difference(before, after))
    assert running.difference([fine, 2 * fine], [fine, 3 * fine]) == 0.5
    assert running.difference([], []) == 0


def test_difference_sees_a_broken_branch(digits: Tensor, lived_in: LivedIn) -> None:
    model = lived_in(block())
    grafted, _ = edge_sk.graft(model, kernels="3+5", input_size=16)
    sites, _, _ = finding.find(model)
    unit = units(grafted)[0]
    nn.init.zeros_(unit.branches[1].get_submodule("conv").weight)
    changed = measure.compare(model, grafted, digits[:2], [(sites[0], unit)])
    assert changed.network is not None
    assert changed.network > 1e-3
    assert changed.sites[0] > 1e-3


def test_a_network_of_integer_outputs_has_nothing_to_compare(lived_in: LivedIn) -> None:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = lived_in(block())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).argmax(1)

    _, report = edge_sk.graft(Choice(), input_size=16)
    assert report.difference is report.difference_real is None
    assert report.replaced[0].difference < 1e-5
    assert "init=preserve: outputs not compared, the network returns no floating-point value" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["difference"] is None


def test_report_is_for_people_and_for_json(lived_in: LivedIn) -> None:
    model = lived_in(Reads("weight"))
    _, report = edge_sk.graft(model, input_size=16)
    text = str(report)
    assert "1 of 2 grouped convolutions grafted, found by dataflow" in text
    assert re.search(r"site\.1 +3x3 depthwise 8 +3\+3d2 +batch norm +-1 +16x16 +\d\.\de-0[78]", text)
    assert "skipped: conv (3x3 depthwise 8): its weight or a buffer is read directly in forward" in text
    assert re.search(r"parameters \d+ -> [\d,]+ \(\+", text)
    assert re.search(r"MACs +[\d,]+ -> [\d,]+ \(\+.*at 3x16x16", text)
    assert "init=preserve: relative output difference" in text
    assert "two photographs" in text
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["replaced"][0]["kernels"] == "3+3d2"
    assert plain["exact"] is True


def test_exports_and_reparameterizes(digits: Tensor, lived_in: LivedIn) -> None:
    model = lived_in(edge_sk.create_model("timm:mobilenetv3_small_050", num_classes=10))
    grafted, _ = edge_sk.graft(model, kernels="3+5", where=lambda site: site.kernel_size == 3, input_size=64)
    expected = model(digits[:2]).detach()
    exported = torch.export.export(grafted, (digits[:2],)).module()
    torch.testing.assert_close(exported(digits[:2]).detach(), expected, rtol=1e-4, atol=1e-4)
    deployed = edge_sk.reparameterize(grafted)
    torch.testing.assert_close(deployed(digits[:2]).detach(), expected, rtol=1e-4, atol=1e-4)


def test_state_dict_round_trip(digits: Tensor, lived_in: LivedIn) -> None:
    model = lived_in(edge_sk.create_model("shufflenetv2_0.5", num_classes=10))
    grafted, _ = edge_sk.graft(model, input_size=64)
    again, _ = edge_sk.graft(edge_sk.create_model("shufflenetv2_0.5", num_classes=10), input_size=64)
    again.load_state_dict(grafted.state_dict())
    again.eval()
    with torch.no_grad():
        assert torch.equal(again(digits[:2]), grafted(digits[:2]))


def test_docs_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "grafting.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code) == 1
    assert len([line for line in code[0].splitlines() if line.strip()]) <= 6
    exec(code[0], {})  # the documentation's own lines
    out = capsys.readouterr().out
    assert "MobileNetV3: " in out
    assert "where=depthwise & stages(2, 3)" in out
