"""Changed maps: answers are those of the network itself with the changed map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from support import check_error

import xai_abn
from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError


def run(model, edit, **more):
    """The network's own output for the image."""
    inputs = edit.image.tensor[None].contiguous(memory_format=model.memory_format)
    with torch.no_grad():
        return model.module.eval()(inputs, **more)


def test_untouched_answers_are_those_of_explain(abn_lite0):
    """To the last bit: logits, probabilities and maps."""
    edit = abn_lite0.edit("example:cat")
    result = xai_abn.explain(abn_lite0, "example:cat", ["abn", "abn-class"])
    assert float(edit.own.probabilities.max()) == result["abn"].probability
    assert np.array_equal(edit.own.attention_map.numpy(), result["abn"].map)
    assert np.array_equal(edit.own.class_maps[result["abn"].target].numpy(), result["abn-class"].map)


def test_a_changed_map_gives_what_the_network_gives_with_it(abn_lite0):
    """Exactly, in the perception branch; the attention branch keeps its answer."""
    edit = abn_lite0.edit("example:cat")
    changed = torch.rand(edit.grid, generator=torch.Generator().manual_seed(0))
    answers = edit.answers(attention=changed)
    assert torch.equal(answers.logits, run(abn_lite0, edit, attention=changed[None, None]).logits[0])
    assert not torch.equal(answers.logits, edit.own.logits)
    assert torch.equal(answers.attention_logits, edit.own.attention_logits)
    assert torch.equal(edit.answers(attention=changed.numpy()).logits, answers.logits)


def test_a_changed_class_map_changes_the_logit_of_its_class_alone(small_abn):
    """To its mean."""
    edit = small_abn.edit("example:cat")
    answers = edit.answers(class_maps={3: np.full(edit.grid, 2.5, np.float32)})
    assert float(answers.attention_logits[3]) == pytest.approx(2.5)
    others = [index for index in range(10) if index != 3]
    assert torch.equal(answers.attention_logits[others], edit.own.attention_logits[others])
    assert torch.equal(answers.logits, edit.own.logits)


def test_marks_raise_and_lower_both_maps_by_the_share_of_each_cell(small_abn):
    """M towards 1 and 0, the class map towards its largest value and 0, by hand."""
    edit = small_abn.edit("example:cat")
    left, top, right, bottom = edit.image.seen
    middle = (left + right) / 2
    answers = edit.marked(4, look=(left, top, middle, bottom), avoid=(middle, top, right, bottom))
    width = edit.grid[1]
    expected = torch.tensor([[max(0.0, min(1.0, width / 2 - column)) for column in range(width)]] * edit.grid[0])
    assert torch.allclose(answers.attention_map, expected)
    most = edit.own.class_maps[4].max().clamp_min(0)
    assert torch.allclose(answers.class_maps[4], expected * most)
    assert torch.allclose(answers.logits, run(small_abn, edit, attention=expected[None, None]).logits[0])


def test_attributes_have_a_map_each(image):
    """Marks for one change its map and leave the others."""
    torch.manual_seed(0)
    network = xai_abn.abn_from(torchvision.models.resnet18(num_classes=3), maps="per-attribute", input_size=64)
    model = xai_abn.wrap(network, labels=["a", "b", "c"], preprocess=xai_abn.Preprocess(size=64))
    edit = model.edit(model.preprocess(xai_abn.images.from_array(image)))
    answers = edit.marked("b", avoid=(0, 0, 80, 60))
    assert float(answers.attention_map[1].max()) == 0
    assert torch.equal(answers.attention_map[0], edit.own.attention_map[0])
    assert torch.equal(answers.logits, run(model, edit, attention=answers.attention_map[None]).logits[0])
    assert float(answers.probabilities[1]) == pytest.approx(float(answers.logits[1].sigmoid()))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda edit: edit.answers(attention=np.full(edit.grid, 1.5)), InvalidInputError),
        (lambda edit: edit.answers(attention=np.full(edit.grid, np.nan)), InvalidInputError),
        (lambda edit: edit.answers(attention=np.zeros((3, 5))), InvalidInputError),
        (lambda edit: edit.answers(attention="bright"), InvalidInputError),
        (lambda edit: edit.answers(class_maps={10: np.zeros(edit.grid)}), InvalidInputError),
        (lambda edit: edit.marked("platypus", look=(100, 50, 200, 150)), UnknownNameError),
        (lambda edit: edit.marked(1, look=(100, 50, 200, 150), avoid=(150, 50, 250, 150)), InvalidInputError),
        (lambda edit: edit.marked(1, look=(0, 0, 10, 10)), InvalidInputError),  # outside the center crop
        (lambda edit: edit.marked(1, look=np.ones((5, 5), bool)), InvalidInputError),
    ],
)
def test_what_cannot_be_is_refused(small_abn, wrong, error):
    """With one sentence that says what to do."""
    model = xai_abn.wrap(small_abn.module, labels=[f"number {i}" for i in range(10)], preprocess=small_abn.preprocess)
    with pytest.raises(error) as raised:
        wrong(model.edit("example:cat"))
    check_error(raised.value)


def test_a_classifier_without_an_attention_map_is_refused(small_resnet):
    """Nothing would change."""
    with pytest.raises(UnsupportedModelError, match="abn_from") as raised:
        small_resnet.edit("example:cat")
    check_error(raised.value)


def test_a_mask_goes_to_the_view_and_back(abn_lite0):
    """Cells of a mask are those of its box, and a mask of the view lies in the image where the view does."""
    prepared = abn_lite0.edit("example:cat").image
    mask = np.zeros((300, 451), bool)
    mask[60:180, 130:300] = True
    assert np.abs(prepared.cells(mask, (14, 14)) - prepared.cells((130, 60, 300, 180), (14, 14))).max() < 0.1
    seen = prepared.seen_of(mask, (224, 224))
    back = prepared.on_image(seen)
    assert (back != mask).mean() < 0.01
    assert np.array_equal(prepared.seen_of(back, (224, 224)).mean() > 0, True)
    whole = prepared.on_image(np.ones((224, 224), bool))
    rows, columns = np.nonzero(whole)
    left, top, right, bottom = prepared.region
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == pytest.approx(
        (left, top, right, bottom), abs=1
    )
