"""Forward passes by the quickest backend: the same maps, chosen as predictions are, and recorded."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import runner

import xai_abn
from xai_abn.cli.main import app
from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers import base, make_explainers, names, passes_of
from xai_abn.explainers.base import EXPLAINERS
from xai_abn.models.backends import BACKENDS, Backend
from xai_abn.models.predictor import BOUND_OF_SCORES

QUICK_TO_BUILD = [n for n, b in BACKENDS.items() if n not in ("network", "torch-compile") and not b.missing("cpu")]
METHODS = {
    "small_abn": ["abn", "abn-class", "abn-mask", "abn-mask:unite=2", "eigen-cam"],
    "gap_net": ["cam", "eigen-cam"],
}


def noise(model, number=3):
    """Inputs of the size that the model takes."""
    return torch.randn(number, *model.preprocess.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", QUICK_TO_BUILD)
@pytest.mark.parametrize("fixture", METHODS)
def test_maps_are_those_of_the_network(name, fixture, request):
    """To the bound by which a backend is chosen, and so are scores; the record names what computed them."""
    model = request.getfixturevalue(fixture)
    inputs = list(noise(model))
    expected = xai_abn.explain(model, inputs, METHODS[fixture])
    found = xai_abn.explain(replace(model, backend=name), inputs, METHODS[fixture])
    for own, right in zip(found, expected, strict=True):
        for method in METHODS[fixture]:
            gap = np.abs(own[method].map - right[method].map).max()
            assert gap <= BOUND_OF_SCORES * np.abs(right[method].map).max(), method
            assert own[method].score == pytest.approx(right[method].score, abs=1e-4)
            assert own[method].predicted == right[method].predicted
            assert own[method].to_dict()["backend"] == f"{name}, float32"
            assert right[method].to_dict()["backend"] == "network, float32"


def offered(name, build):
    """A backend that is quick to build."""
    return Backend(name, build, 0.0, any_size=True)


def test_a_backend_that_gives_another_layer_is_not_taken(gap_net, monkeypatch):
    """Although its logits are right; it costs a note, and the next one is tried."""

    def wrong(model, bf16, inputs):
        return lambda given: (
            (found := model.logits_of(model.module(given))) * (1 + 1e-3 * (torch.arange(found.shape[1]) > 4))
        )

    def right(model, bf16, inputs):
        return lambda given: model.logits_of(model.module(given))

    made = {n: offered(n, b) for n, b in (("network", right), ("wrong", wrong), ("right", right))}
    for module in ("backends", "predictor"):
        monkeypatch.setattr(f"xai_abn.models.{module}.BACKENDS", made)
    monkeypatch.setattr("xai_abn.models.predictor.SHARE", 0.2)
    passes = passes_of(gap_net, make_explainers(gap_net, "cam"), 1_000_000)
    with torch.no_grad():
        for _ in range(4):
            passes(noise(gap_net))
    assert passes.predictor.notes == ["wrong gives other values than gap-net, by 0.001"]
    assert [trial.backend for trial in passes.predictor.trials] == ["right"]


def test_few_images_and_methods_that_need_the_network_have_none(gap_net, small_abn):
    """Those that differentiate it, run it again, or are given by a plug-in that does not say what it reads."""
    assert passes_of(gap_net, make_explainers(gap_net, "cam"), base.FEW - 1) is None
    assert passes_of(gap_net, make_explainers(gap_net, "cam"), base.FEW) is not None
    for methods in ("grad-cam", "cam,grad-cam", "rise", "recipro-cam"):
        assert passes_of(gap_net, make_explainers(gap_net, methods), 10_000) is None
    for name in names():
        kind = EXPLAINERS[name]
        assert kind.maps_read is None or not (kind.needs_gradient or kind.needs_attention)


def test_other_sizes_run_the_network(gap_net):
    """A graph is of one size."""
    model = replace(gap_net, backend="folded")
    passes = passes_of(model, make_explainers(model, "cam"), 10)
    assert passes(noise(model)).backend == "folded, float32"
    assert passes(torch.randn(2, 3, 48, 48)).backend == "network, float32"
    assert passes(noise(model)).backend == "folded, float32"


def test_a_backend_by_name_that_cannot_is_an_error(gap_net, monkeypatch):
    """As for predictions."""

    def fails(model, bf16, inputs):
        raise RuntimeError("no such operator")

    monkeypatch.setitem(BACKENDS, "folded", offered("folded", fails))
    with pytest.raises(UnsupportedModelError, match="folded does not run gap-net: no such operator; choose another"):
        xai_abn.explain(replace(gap_net, backend="folded"), list(noise(gap_net)), "cam")


def test_the_command_says_and_records_what_it_used(image_file, tmp_path):
    """Once, with what was measured."""
    out = tmp_path / "out"
    arguments = ["explain", str(image_file), "-m", "lite0", "-M", "cam", "-o", str(out), "--backend", "folded"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("note: maps: folded, float32: ") == 1
    (line,) = (out / "records.jsonl").read_text().splitlines()
    assert [record["backend"] for record in json.loads(line)["explanations"]] == ["folded, float32"]
