"""Checkpoints of every format version load and give the values they gave when they were written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xai_abn
from xai_abn.networks.checkpoint import fingerprint, fingerprints_v1, read_checkpoint, read_tensors
from xai_abn.training.masks import mask_scores

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected-v1.json").read_text())
KINDS = ("classifier", "abn", "multi-task", "vit")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_the_values_it_gave(kind, version):
    """Logits, attention logits and maps of seeded inputs; labels, multi-label flag and target layer."""
    expected = EXPECTED[f"checkpoint-v1-{kind}.safetensors"]
    path = HERE / f"checkpoint-v{version}-{kind}.safetensors"
    assert read_tensors(path)[0]["format_version"] == str(version)
    model = xai_abn.load_model(path)
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model.module(inputs)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), atol=1e-4, rtol=1e-4)
    if kind != "classifier":
        assert list(output.attention_map.shape) == expected["attention_shape"]
        means = output.attention_map.mean(dim=(2, 3))
        torch.testing.assert_close(means, torch.tensor(expected["attention_mean"]), atol=1e-4, rtol=1e-4)
        scores = torch.tensor(expected["attention_logits"])
        torch.testing.assert_close(output.attention_logits, scores, atol=1e-4, rtol=1e-4)
    assert model.target_layer == expected["target_layer"]
    assert model.multi_label == (kind == "multi-task")
    assert len(model.labels) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_both_versions_hold_the_same_weights(kind):
    """Version 2 changes the description alone."""
    (_, old), (_, new) = (read_tensors(HERE / f"checkpoint-v{v}-{kind}.safetensors") for v in (1, 2))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert (
        read_checkpoint(HERE / f"checkpoint-v1-{kind}.safetensors")[0]
        == (read_checkpoint(HERE / f"checkpoint-v2-{kind}.safetensors")[0])
    )


def test_version_3_knows_stages_without_normalization():
    """Its file is that of version 2 without the BatchNorm behind the attention branch's stage."""
    path = HERE / "checkpoint-v3-abn.safetensors"
    assert read_tensors(path)[0]["format_version"] == "3"
    old, new = (xai_abn.load_model(HERE / f"checkpoint-v{version}-abn.safetensors").module for version in (2, 3))
    old.attention_branch.bn_att = torch.nn.Identity()
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for given, expected in zip(new(inputs), old(inputs), strict=True):
            torch.testing.assert_close(given, expected)


def test_version_4_knows_mask_branches():
    """Its file is that of version 3 with a mask branch, whose scores are those recorded when it was written."""
    path = HERE / "checkpoint-v4-abn.safetensors"
    assert read_tensors(path)[0]["format_version"] == "4"
    expected = json.loads((HERE / "expected-v4.json").read_text())
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = mask_scores(xai_abn.load_model(path), inputs, torch.tensor([1, 1]))
    assert list(found.shape[1:]) == expected["scores_shape"]
    recorded = torch.tensor(expected["scores_every_fourth"])
    torch.testing.assert_close(found[:, ::4, ::4].flatten(1), recorded, atol=1e-3, rtol=1e-3)


def test_loading_looks_for_nothing(monkeypatch):
    """A checkpoint of version 2 is rebuilt without running it, looking for the cut, or drawing weights."""

    def fail(*_, **__):
        raise AssertionError("loading ran the network or looked for its cut")

    monkeypatch.setattr(torch.nn.Module, "__call__", fail)
    monkeypatch.setattr("xai_abn.networks.splitting.default_split_layer", fail)
    monkeypatch.setattr("xai_abn.networks.dilation.plan_windows", fail)
    before = torch.get_rng_state()
    for kind in KINDS:
        xai_abn.load_model(HERE / f"checkpoint-v2-{kind}.safetensors")
    xai_abn.load_model("abn-lite0")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_opens_no_other_file():
    """Everything needed is in the file; modules already imported are not read again."""
    script = (
        "import sys, xai_abn\n"
        "path = sys.argv[1]\n"
        "xai_abn.load_model(path)\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, what: opened.append(str(what[0])) if event == 'open' else None)\n"
        "xai_abn.load_model(path)\n"
        "print([name for name in opened if name != path])\n"
    )
    for kind in KINDS:
        path = str(HERE / f"checkpoint-v2-{kind}.safetensors")
        found = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "[]"


def test_fingerprints_are_the_recorded_ones():
    """The present recipe, and the one of runs and states of version 1, on a layer whose text never changed."""
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.bias.fill_(3.0)
    assert fingerprint(layer) == "2ead043ef5bb68475eb960c05dc35cf3"
    assert fingerprints_v1(layer) == {"6acc55d6e29fab9afd3d2982e7df4cda"}


def test_a_fingerprint_depends_on_names_types_shapes_and_values_alone():
    """Not on the class or its text."""

    class Named(torch.nn.Linear):
        def extra_repr(self):
            return "another text"

    network = torch.nn.Linear(2, 1)
    other = Named(2, 1)
    other.load_state_dict(network.state_dict())
    assert fingerprint(other) == fingerprint(network)
    assert fingerprint(other.half()) != fingerprint(network)
    with torch.no_grad():
        network.weight[0, 0] += 1
    assert fingerprint(other.float()) != fingerprint(network)
