"""Networks and calls that once gave wrong maps without a word."""

import numpy as np
import pytest
import timm
import torch
from odd_networks import Cosine, Transformer, Windows
from torch import nn
from torch.utils.checkpoint import checkpoint

import xai_abn
from xai_abn.cli.output import OutputFolder
from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.explainers import get, make_explainers
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.networks.tracing import prefix_tokens
from xai_abn.pipeline import explain_images

SMALL = xai_abn.Preprocess(size=64)


class Net(nn.Module):
    """A convolution, its mean, a head."""

    def __init__(self, head=None):
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 16, 3, 4, 1), head or nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.body(x).relu().mean(dim=(2, 3)))


class Viewed(Net):
    """As in many tutorials, flattened with view, which channels-last tensors do not allow."""

    def __init__(self):
        super().__init__(nn.Linear(16 * 16 * 16, 10))

    def forward(self, x):
        return self.fc(self.body(x).relu().view(-1, 16 * 16 * 16))


class ViewedByInput(Net):
    """Takes the batch's size from the input, and so all of a rerun's images for one."""

    def forward(self, x):
        return self.fc(self.body(x).relu().reshape(x.size(0), 16, -1).mean(dim=2))


class Twice(Net):
    """Uses its layer for the image and its mirror image."""

    def forward(self, x):
        return 2 * self.fc(self.body(x.flip(-1)).relu().mean(dim=(2, 3))) + super().forward(x)


def wrapped(network, **options):
    return xai_abn.wrap(network, preprocess=SMALL, **options)


@pytest.fixture
def small():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["subclass", "hook"])
def test_the_row_is_looked_up_of_plain_linear_layers_only(small, kind):
    network = Net(Cosine(16, 10)) if kind == "subclass" else Net()
    if kind == "hook":
        network.fc.register_forward_hook(lambda _module, _inputs, output: output / 5)
    found = ForwardPass(wrapped(network), small, ["body"], gradients=True).gradients("body", torch.tensor([1, 2]))
    features = network.body(small)
    logits = network.fc(features.relu().mean(dim=(2, 3)))
    (expected,) = torch.autograd.grad(logits[0, 1] + logits[1, 2], features)
    torch.testing.assert_close(found, expected)


def test_rerun_with_a_layers_own_values_gives_the_logits(small):
    shared = ForwardPass(wrapped(ViewedByInput()), small, ["body"])
    own = shared.raw_output("body")[1:].expand(3, -1, -1, -1)
    torch.testing.assert_close(shared.rerun("body", 1, own), shared.logits[1:].expand(3, -1))


def test_view_of_a_feature_map_is_survived(small):
    model = wrapped(Viewed())
    result = xai_abn.explain(model, small, ["grad-cam", "score-cam"], 3)
    expected = get("grad-cam")().explain(ForwardPass(model, small, ["body"], True), torch.tensor([3, 3]))
    np.testing.assert_allclose(result[0]["grad-cam"].map, expected[0].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("class_token", [True, False])
def test_the_class_token_is_found_where_blocks_attend_themselves(small, class_token):
    model = wrapped(Transformer(class_token))
    assert model.reads_class_token is class_token


def test_tokens_in_front_are_counted_inside_a_wrapper():
    inner = nn.Identity()
    inner.num_prefix_tokens = 5
    assert prefix_tokens(nn.Sequential(inner)) == 5


def test_layers_that_cut_images_up_are_refused(small):
    with pytest.raises(UnsupportedModelError, match="windows"):
        xai_abn.explain(wrapped(Windows(), layer="body"), small, "hires-cam")


def test_rise_explains_a_score_as_it_explains_a_value(small):
    network, method = Net(), "rise:masks=20,side=3"
    found = xai_abn.explain(wrapped(network), small[:1], method, lambda logits: logits[:, 0])[0]
    expected = xai_abn.explain(wrapped(network, scores_only=True), small[:1], method, 0)[0]
    np.testing.assert_allclose(found[method].map, expected[method].map, rtol=1e-4, atol=1e-7)
    assert found[method].map.min() < 0 < found[method].map.max()


@pytest.mark.parametrize("score", [lambda x: x, lambda x: x.sum(), lambda x: x[0], lambda x: x[:1, 0], lambda x: 1])
def test_scores_of_another_shape_are_refused(small, score):
    with pytest.raises((InvalidInputError, UnsupportedModelError), match=r"one (number|row) (per|an) image"):
        xai_abn.explain(wrapped(Net()), small, "grad-cam", score)


@pytest.mark.parametrize("target", [np.int64(3), torch.tensor(3), [np.int64(3)], [torch.tensor(3)]])
def test_numbers_of_other_libraries_are_targets(small, target):
    assert xai_abn.explain(wrapped(Net()), small[:1], "cam", target)["cam"].target == 3


def test_classes_of_one_label_are_kept_apart(small):
    model = wrapped(Net(), labels=["crane", "crane", *"cdefghij"])
    (result,) = xai_abn.explain(model, small[:1], "cam", [[0, 1, 1]])
    assert [e.target for e in result.values()] == [0, 1]
    assert result["cam", "crane (1)"].target == 1


def test_no_map_is_given_out_for_another_label(small):
    (result,) = xai_abn.explain(wrapped(Net()), small[:1], ["cam", "eigen-cam"], 3)
    assert result.get("cam", "class 3") is result.get("cam", 3) is result["cam"]
    assert result.get("eigen-cam", "class 7") is result["eigen-cam"]  # one map for every class
    assert result.get("cam", "class 7") is None
    for key in ("c", ("cam", "class 3")):
        with pytest.raises(KeyError):
            result[key]


def test_a_image_whose_top_class_is_compared_with_itself_does_not_stop_the_others(small):
    model = wrapped(Net())
    with torch.no_grad():
        first, second = model.module.body(small).relu().mean(dim=(2, 3))
        head = model.module.fc
        head.weight.zero_()[0] = first - second
        head.bias.fill_(-1e3)[:2] = torch.stack([torch.tensor(0.0), (first - second) @ (first + second) / 2])
    top = model.module(small).argmax(dim=1).tolist()
    assert top == [0, 1]
    targets = [[xai_abn.Difference(versus=0)]] * 2
    first, second = explain_images(model, list(small), make_explainers(model, "cam"), targets)
    assert isinstance(first, InvalidInputError)
    assert second["cam"].target == 1


@pytest.mark.parametrize("target", [-1, 10])
def test_a_pass_refuses_targets_out_of_range(small, target):
    shared = ForwardPass(wrapped(Net()), small, ["body"], gradients=True)
    with pytest.raises(InvalidInputError, match="from 0 to 9"):
        shared.gradients("body", torch.tensor([0, target]))


def test_labels_that_look_alike_as_file_names_get_files_of_their_own(small, tmp_path):
    model = wrapped(Net(), labels=["C", "C++", *"defghijk"])
    (result,) = xai_abn.explain(model, small[:1], "cam", [[0, 1]])
    files = OutputFolder(tmp_path, maps=True).save("a.png", list(result.values()))
    np.testing.assert_array_equal(np.load(files[0][1]), result["cam", "C"].map)
    np.testing.assert_array_equal(np.load(files[1][1]), result["cam", "C++"].map)


def test_a_single_output_has_a_probability_only_if_it_is_said_to_be_a_logit(inputs):
    """It may be a regression: an age of 58 is not a class that is certain."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    record = xai_abn.explain(xai_abn.wrap(network, preprocess=SMALL), inputs, "grad-cam")[0]["grad-cam"]
    assert np.isnan(record.probability)
    assert "score" in record.answer
    assert any("multi_label=True" in note for note in record.notes)
    model = xai_abn.wrap(network, preprocess=SMALL, multi_label=True)
    record = xai_abn.explain(model, inputs, "grad-cam")[0]["grad-cam"]
    assert record.probability == pytest.approx(float(torch.tensor(record.score).sigmoid()))


def test_a_network_of_another_size_says_what_to_give(inputs):
    """Its target layer is looked for with a blank input of the preprocessing's size."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=48)
    with pytest.raises(UnsupportedModelError, match=r"Preprocess\(size"):
        _ = xai_abn.wrap(vit, preprocess=xai_abn.Preprocess()).target_layer
    assert xai_abn.wrap(vit).target_layer == "blocks.0.norm1"


def test_registers_are_counted_where_a_network_tells_them(inputs):
    """A class token and four registers, on an image that is not square."""
    network = nn.Sequential(nn.Identity())
    network[0].num_register_tokens = 4
    assert prefix_tokens(network) == 5


@pytest.mark.parametrize("method", ["grad-cam", "shapley-cam", "legrad", "attention-relevance"])
def test_checkpointed_blocks_run_once(method, image):
    """Timm's checkpointing is off while a network is explained, and on again afterwards; the map is the same."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, embed_dim=48, num_classes=5).eval()
    model = xai_abn.wrap(vit, preprocess=SMALL)
    plain = xai_abn.explain(model, image, method)[0][method].map
    vit.set_grad_checkpointing(True)
    np.testing.assert_array_equal(xai_abn.explain(model, image, method)[0][method].map, plain)
    assert vit.grad_checkpointing


def test_a_network_that_checkpoints_by_itself_is_explained_or_refused(image):
    """A checkpointed block behind the layer changes nothing; attention inside it is refused with what to do."""

    class Checkpointed(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, tokens):
            return checkpoint(self.block, tokens, use_reentrant=False)

    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, embed_dim=48, num_classes=5).eval()
    model = xai_abn.wrap(vit, preprocess=SMALL, layer="blocks.1")
    plain = xai_abn.explain(model, image, "grad-cam")["grad-cam"].map
    vit.blocks[2] = Checkpointed(vit.blocks[2])
    np.testing.assert_allclose(xai_abn.explain(model, image, "grad-cam")["grad-cam"].map, plain, atol=1e-6)
    with pytest.raises(UnsupportedModelError, match=r"torch\.utils\.checkpoint\); switch this off"):
        xai_abn.explain(xai_abn.wrap(vit, preprocess=SMALL), image, "attention-relevance")


class Frozen(Net):
    """Runs its body without gradients, as in transfer learning."""

    def forward(self, x):
        with torch.no_grad():
            features = self.body(x).relu()
        return self.fc(features.mean(dim=(2, 3)))


class FrozenBody(Frozen):
    """The same with a module for the whole frozen part."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(self.body, nn.ReLU())


@pytest.mark.parametrize(("kind", "layer"), [(Frozen, "body"), (FrozenBody, "body")])
def test_a_part_that_runs_without_gradients_is_read_all_the_same(kind, layer):
    """Only the head behind it has to be differentiated: HiResCAM is the class weights times the features."""
    torch.manual_seed(0)
    network, image = kind().eval(), torch.randn(1, 3, 64, 64)
    found = xai_abn.explain(xai_abn.wrap(network, preprocess=SMALL), image, "hires-cam", targets=3)["hires-cam"]
    with torch.no_grad():
        features = network.body(image).relu()
        right = (network.fc.weight[3, :, None, None] * features[0]).sum(0) / features[0, 0].numel()
    assert found.layer == layer
    np.testing.assert_allclose(found.map, right.numpy(), rtol=1e-4, atol=1e-6)


def test_a_network_of_several_inputs_says_what_to_do():
    """No size of the input would help."""

    class Two(Net):
        def forward(self, x, y):
            return super().forward(x) + super().forward(y)

    with pytest.raises(UnsupportedModelError, match="the other inputs of a network with several as other_inputs="):
        xai_abn.explain(xai_abn.wrap(Two(), preprocess=SMALL), torch.randn(1, 3, 64, 64), "grad-cam")
