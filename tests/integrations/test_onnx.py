"""Models as ONNX: the same answers in onnxruntime, at every size that is promised."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
import torchvision
from support import call
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, OutputError, UnsupportedModelError
from xai_abn.images.loading import load_image
from xai_abn.models import zoo
from xai_abn.integrations.onnx import export_onnx

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def answers(path, inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    found = session.run(names, {"images": inputs.numpy()})
    return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}


@pytest.mark.parametrize("fixture", ["abn_lite0", "abn_resnet18"])
def test_an_abn_gives_logits_and_both_maps(request, fixture, tmp_path):
    """One file answers batches and sizes that the export itself did not try."""
    model = request.getfixturevalue(fixture)
    made = export_onnx(model, tmp_path / "abn.onnx")
    assert made.any_size
    assert max(made.differences.values()) < 1e-3
    for batch, size in ((1, (224, 224)), (3, (160, 97))):
        inputs = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
        found = answers(made.path, inputs)
        with torch.no_grad():
            expected = model.module.eval()(inputs)
        assert list(found) == ["logits", "attention_map", "class_maps"]
        for name, values in found.items():
            torch.testing.assert_close(values, getattr(expected, name), rtol=1e-4, atol=1e-4)


def test_a_file_in_half_precision_takes_and_gives_float32(abn_lite0, tmp_path):
    """Half the size, the same outputs within a hundredth of the largest value, on images."""
    whole, made = (
        export_onnx(abn_lite0, tmp_path / "abn.onnx"),
        export_onnx(abn_lite0, tmp_path / "half.onnx", half=True),
    )
    assert made.path.stat().st_size < 0.52 * whole.path.stat().st_size
    assert made.any_size
    inputs = torch.stack([abn_lite0.preprocess(load_image(f"example:{n}")).tensor for n in ("cat", "coffee")])
    with torch.no_grad():
        expected = abn_lite0.module(inputs)
    for name, values in answers(made.path, inputs).items():
        assert values.dtype == torch.float32
        largest = float(getattr(expected, name).abs().max())
        torch.testing.assert_close(values, getattr(expected, name), rtol=0, atol=1e-2 * largest)
    assert all(p.dtype == torch.float32 for p in abn_lite0.module.parameters())


def test_a_network_too_large_for_half_precision_is_refused(tmp_path):
    """Beyond 65504 there is no float16."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    nn.init.constant_(network[2].weight, 1e6)
    model = xai_abn.wrap(network, preprocess=xai_abn.Preprocess(size=32))
    with pytest.raises(UnsupportedModelError, match=r"logits differ .*; export it without half precision"):
        export_onnx(model, tmp_path / "half.onnx", half=True)
    export_onnx(model, tmp_path / "whole.onnx")


def test_torchvisions_transformers_are_exported(tmp_path):
    """Their attention has a fast path that ONNX has not."""
    network = torchvision.models.VisionTransformer(64, 16, 2, 4, 32, 64, num_classes=5)
    nn.init.normal_(network.heads.head.weight)
    made = export_onnx(xai_abn.wrap(network.eval(), preprocess=xai_abn.Preprocess(size=64)), tmp_path / "vit.onnx")
    assert made.differences["logits"] < 1e-4
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_file_says_how_to_use_it(gap_net, tmp_path):
    """Labels, preprocessing, name and version are in its metadata; a classifier has logits alone."""
    made = export_onnx(gap_net, tmp_path / "net.onnx")
    metadata = onnxruntime.InferenceSession(str(made.path)).get_modelmeta()
    facts = metadata.custom_metadata_map
    assert xai_abn.Preprocess.from_dict(json.loads(facts["preprocess"])) == gap_net.preprocess
    assert json.loads(facts["labels"]) == list(gap_net.labels)
    assert (facts["model"], facts["xai-abn"]) == ("gap-net", xai_abn.__version__)
    assert made.outputs == ("logits",)


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (nn.Identity(), "not accept other sizes"),
        (nn.AdaptiveAvgPool2d(3), "1 pools adaptively to 3, which ONNX"),
    ],
)
def test_a_network_that_needs_its_size_gets_it(pool, reason, tmp_path):
    """Where no other size is possible, in the network or in ONNX, the file says so and takes any batch."""
    side = 32 if isinstance(pool, nn.Identity) else 24
    features = 4 * (side // 4) ** 2 if isinstance(pool, nn.Identity) else 36
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), pool, nn.Flatten(), nn.Linear(features, 2)).eval()
    model = xai_abn.wrap(network, preprocess=xai_abn.Preprocess(size=side))
    made = export_onnx(model, tmp_path / "net.onnx")
    assert not made.any_size
    assert re.search(reason, made.fixed_because)
    inputs = torch.randn(5, 3, side, side)
    torch.testing.assert_close(answers(made.path, inputs)["logits"], network(inputs).detach())


class Fickle(nn.Module):
    """Answers otherwise when traced."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) * (2 if torch.jit.is_tracing() else 1)


def test_nothing_is_left_of_an_export_that_failed(gap_net, tmp_path, monkeypatch):
    """A wrong answer, a wrong ending, a missing folder or package: one error, and the old file stays."""
    target = tmp_path / "net.onnx"
    target.write_bytes(b"old")
    model = xai_abn.wrap(Fickle(), preprocess=xai_abn.Preprocess(size=32))
    with pytest.raises(UnsupportedModelError, match="logits differ from PyTorch's by"):
        export_onnx(model, target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(InvalidInputError, match=r"must end in \.onnx"):
        export_onnx(gap_net, tmp_path / "net.pt")
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx(gap_net, tmp_path / "nowhere" / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InvalidInputError, match=r"needs onnxruntime: pip install 'xai-abn\[onnx\]'"):
        export_onnx(gap_net, target)


def test_exporting_leaves_the_model_alone(gap_net, tmp_path):
    """Mode and flags stay as they were."""
    gap_net.module.train()
    export_onnx(gap_net, tmp_path / "net.onnx")
    assert all(m.training for m in gap_net.module.modules())
    assert all(p.requires_grad for p in gap_net.module.parameters())


def test_the_command_writes_what_the_ending_says(gap_net, tmp_path, monkeypatch):
    """``xai-abn export MODEL FILE.onnx`` prints outputs, sizes and difference; other endings are refused."""
    monkeypatch.setitem(zoo.models, "small", lambda: gap_net)
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("export", "small", "small.onnx")
    assert code == 0
    assert out.startswith("small.onnx: logits; any batch, any size\nlargest difference from PyTorch: logits ")
    assert (tmp_path / "small.onnx").is_file()
    assert call("export", "small", "half.onnx", "--half")[0] == 0
    assert (tmp_path / "half.onnx").stat().st_size < (tmp_path / "small.onnx").stat().st_size
    code, _, err = call("export", "small", "small.pt")
    assert code == 2
    assert err.startswith("xai-abn: small.pt: the file must end in .onnx")
