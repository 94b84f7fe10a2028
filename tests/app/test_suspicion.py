"""Which images are suspicious: each part of the score by hand, and the order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import xai_abn
from xai_abn.app.suspicion import Suspicion, sorted_by_suspicion, suspicion_of
from xai_abn.datasets import AnnotatedObject, Sample


def one(name, disagreement, map_):
    return Suspicion(name, "cat", 0.5, map_, "dog", disagreement)


def test_images_with_like_maps_follow_the_most_suspicious_of_them():
    """A scaled and shifted map is alike, a flat or turned one is not."""
    draw = np.random.default_rng(0).random((4, 7, 7), dtype=np.float32)
    found = sorted_by_suspicion(
        [
            one("least", 0.1, draw[0] * 3 + 5),
            one("other", 0.5, draw[1]),
            one("most", 0.9, draw[0]),
            one("flat", 0.2, np.ones((7, 7), np.float32)),
            one("turned", 0.3, -draw[0]),
            one("small", 0.05, draw[2][:3, :3]),
        ]
    )
    assert [f.name for f in found] == ["most", "least", "other", "turned", "flat", "small"]
    assert [f.like for f in found] == [None, "most", None, None, None, None]
    assert sorted_by_suspicion([]) == []


def test_the_parts_of_the_score(small_abn):
    """Half the difference of the branches, the energy outside the objects, and 1 for a wrong prediction."""
    labels = [f"number {index}" for index in range(10)]
    model = xai_abn.wrap(small_abn.module, labels=labels, preprocess=small_abn.preprocess)
    edit = model.edit("example:cat")
    predicted = int(edit.own.logits.argmax())
    box = (93.75, 18.75, 225.0, 281.25)  # the left half of what the network sees
    sample = Sample("example:cat", (AnnotatedObject("thing", box),), label=labels[predicted - 1], size=(300, 451))
    found = suspicion_of(model, edit.image, sample)
    difference = float((edit.own.probabilities - edit.own.attention_probabilities).abs().sum()) / 2
    large = torch.nn.functional.interpolate(edit.own.attention_map[None, None], (64, 64), mode="bilinear")[0, 0]
    outside = float(large[:, 32:].sum() / large.sum())
    assert found.disagreement == pytest.approx(difference, abs=1e-6)
    assert found.outside == pytest.approx(outside, abs=0.01)
    assert found.score == pytest.approx(difference + outside + 1, abs=0.01)
    assert found.reasons[0] == f"annotated as {labels[predicted - 1]}"
    right = suspicion_of(model, edit.image, Sample("example:cat", label=labels[predicted].upper()))
    assert (right.truth, right.outside) == (None, None)


def test_a_network_without_attention_branch_is_judged_by_grad_cam(small_resnet):
    """There is nothing to disagree with."""
    prepared = small_resnet.preprocess(xai_abn.images.load_example("cat"))
    found = suspicion_of(small_resnet, prepared, Sample("example:cat"))
    assert np.array_equal(found.map, xai_abn.explain(small_resnet, "example:cat", "grad-cam")["grad-cam"].map)
    assert (found.score, found.reasons) == (0, [])
