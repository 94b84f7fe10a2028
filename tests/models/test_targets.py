"""What a map can be asked: two classes compared, several an image, any score of the answer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import xai_abn
from xai_abn import Difference
from xai_abn.errors import InvalidInputError
from xai_abn.explainers import GradCAM, run_pass
from xai_abn.images.preprocess import Preprocess


def test_a_difference_of_cams_is_the_cam_of_the_difference(gap_net, image):
    """CAM and HiResCAM are linear in the score; the record says what was compared."""
    for method in ("cam", "hires-cam"):
        one, other = (xai_abn.explain(gap_net, image, method, t)[method] for t in ("cat", "dog"))
        both = xai_abn.explain(gap_net, image, method, Difference("cat", versus="dog"))[method]
        np.testing.assert_allclose(both.map, one.map - other.map, atol=1e-6)
        assert both.score == pytest.approx(one.score - other.score, abs=1e-5)
        assert both.probability == pytest.approx(one.probability / (one.probability + other.probability), rel=1e-4)
        assert (both.label, both.target, both.versus) == ("cat rather than dog", 0, 1)


def test_digits_are_the_label_spelt_so_or_else_an_index(gap_net):
    """Where classes are called 1, 2, 3, the text 2 is the class of that name and the number 2 the third."""
    model = xai_abn.wrap(gap_net.module, labels=["1", "2", "3", "cat", "dog"], preprocess=gap_net.preprocess)
    assert [model.target_index(t, 5) for t in ("2", "4", 2, "cat")] == [1, 4, 2, 3]


def test_the_top_class_is_compared_where_none_is_named(gap_net, image):
    """Why this and not that."""
    top = xai_abn.explain(gap_net, image, "cam")["cam"]
    versus = (top.target + 1) % 5
    found = xai_abn.explain(gap_net, image, "cam", Difference(versus=versus))["cam"]
    assert (found.target, found.versus) == (top.target, versus)
    with pytest.raises(InvalidInputError, match="itself"):
        xai_abn.explain(gap_net, image, "cam", Difference(2, versus=2))
    with pytest.raises(TypeError, match="versus"):
        Difference("cat")


def test_several_targets_of_one_image_share_a_pass(gap_net, image, monkeypatch):
    """Each map equals that asked for alone, and the network ran once."""
    alone = {t: xai_abn.explain(gap_net, image, "grad-cam", t)["grad-cam"].map for t in ("cat", "kite")}
    calls = []
    original = gap_net.module.forward
    monkeypatch.setattr(gap_net.module, "forward", lambda x: calls.append(len(x)) or original(x))
    result = xai_abn.explain(gap_net, [image, image], ["grad-cam", "eigen-cam"], [["cat", "kite"], "dog"])
    assert calls == [2]
    assert list(result[0]) == [("grad-cam", "cat"), ("grad-cam", "kite"), "eigen-cam"]
    for label, expected in alone.items():
        np.testing.assert_allclose(result[0]["grad-cam", label].map, expected, atol=1e-6)
    assert result[0].get("grad-cam", "cat").label == result[0].get("grad-cam", 0).label == "cat"
    assert result[0].get("eigen-cam", "kite") is result[0]["eigen-cam"]
    assert ("grad-cam" in result[0], result[0].get("grad-cam"), result[0].get("grad-cam", "dog")) == (False, None, None)
    assert result[1]["grad-cam"].label == "dog"
    with pytest.raises(KeyError):
        result[0]["cam"]


def test_a_function_of_the_answer_can_be_explained(gap_net, image):
    """One that picks a class gives that class's map; there is no probability to tell."""

    def dogs(logits):
        return logits[:, 1]

    found = xai_abn.explain(gap_net, image, ["grad-cam", "score-cam"], dogs)
    expected = xai_abn.explain(gap_net, image, ["grad-cam", "score-cam"], "dog")
    for method in ("grad-cam", "score-cam"):
        np.testing.assert_allclose(found[method].map, expected[method].map, atol=1e-6)
    record = found["grad-cam"]
    assert record.label == "dogs"
    assert math.isnan(record.probability)
    assert json.loads(json.dumps(record.to_dict()))["probability"] is None
    assert record.score == pytest.approx(expected["grad-cam"].score, abs=1e-5)
    assert "score" in record.answer
    record.overlay()


def test_a_segmentation_model_is_explained_by_a_score(inputs):
    """It answers with a dictionary of maps; the score is a region's mean."""

    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return {"out": nn.functional.interpolate(self.head(self.body(x)), x.shape[2:])}

    torch.manual_seed(0)
    model = xai_abn.wrap(Segmenter(), preprocess=Preprocess(size=64), layer="body")
    found = xai_abn.explain(model, inputs, ["grad-cam"], lambda answer: answer["out"][:, 2, :32].mean((1, 2)))
    assert len(found) == 3
    assert found[0]["grad-cam"].map.shape == (32, 32)


@pytest.mark.parametrize("wrong", [[[]], [lambda x: x], ["cat", "dog"]])
def test_impossible_targets_are_refused(gap_net, image, wrong):
    """An empty list, a function for one image only, more targets than images."""
    with pytest.raises(InvalidInputError):
        xai_abn.explain(gap_net, image, "cam", wrong)


def test_directions_are_checked(gap_net, inputs):
    """A direction has a weight for every logit."""
    shared = run_pass(gap_net, inputs, [GradCAM()])
    with pytest.raises(InvalidInputError, match="directions"):
        GradCAM().explain(shared, torch.ones(3, 4))
