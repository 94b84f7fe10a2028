"""Texts as classes, with CLIP and SigLIP of transformers and CLIP of open_clip."""

from __future__ import annotations

import open_clip
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.images import load_image

TEXTS = ["a dog", "a bicycle", "a cat on a chair"]
SIZE = 64
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = SMALL | {"vocab_size": 12, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
VISION = SMALL | {"image_size": SIZE, "patch_size": 16}


def tokenizer():
    """Return a tokenizer of whole words."""
    words = ["<s>", "</s>", "a", "dog", "bicycle", "cat", "on", "chair", "the", "[UNK]"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="</s>", unk_token="[UNK]")


def clip():
    network = transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))
    images = transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return network.eval(), transformers.CLIPProcessor(images, tokenizer())


def siglip():
    network = transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION))
    images = transformers.SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
    return network.eval(), transformers.SiglipProcessor(images, tokenizer())


def openai():
    vision = open_clip.CLIPVisionCfg(layers=2, width=16, head_width=8, patch_size=16, image_size=SIZE)
    text = open_clip.CLIPTextCfg(context_length=16, width=16, heads=2, layers=1)
    return open_clip.CLIP(8, vision, text).eval(), open_clip.get_tokenizer("ViT-B-32", context_length=16)


def own_logits(network, processor, inputs):
    """Return what the network itself answers, (N, K)."""
    if isinstance(network, open_clip.CLIP):
        return network.get_logits(inputs, processor(TEXTS))[0]
    tokens = processor.tokenizer(TEXTS, padding="max_length", max_length=8, return_tensors="pt")
    return network(
        pixel_values=inputs, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
    ).logits_per_image


def made(kind, texts=TEXTS):
    torch.manual_seed(0)
    network, processor = {"CLIP": clip, "SigLIP": siglip, "open_clip": openai}[kind]()
    with torch.no_grad():
        for values in network.parameters():
            values.add_(torch.randn_like(values) * 0.02)
    preprocess = xai_abn.Preprocess(size=SIZE) if kind == "open_clip" else None
    return network, processor, xai_abn.zero_shot(network, processor, texts, preprocess=preprocess)


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP", "open_clip"])
def test_logits_and_maps_are_those_of_the_network_itself(kind):
    """The logits are the network's own similarities; Grad-CAM is that of plain autograd through both sides."""
    network, processor, model = made(kind)
    assert model.labels == tuple(TEXTS)
    inputs = model.preprocess(load_image("example:cat")).tensor[None]
    result = xai_abn.explain(model, "example:cat", ["grad-cam"], ["a bicycle"])[0]["grad-cam"]
    layer = model.module.get_submodule(result.layer)  # shared with the network
    kept = []
    handle = layer.register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.enable_grad():
        logits = own_logits(network, processor, inputs)
        (gradient,) = torch.autograd.grad(logits[0, 1], kept[0])
    handle.remove()
    torch.testing.assert_close(model.module(inputs), logits)
    probabilities = logits.sigmoid() if kind == "SigLIP" else logits.softmax(dim=1)
    assert result.probability == pytest.approx(float(probabilities[0, 1]), abs=1e-5)
    patches = [t.detach()[:, -16:].transpose(1, 2).unflatten(2, (4, 4)) for t in (kept[0], gradient)]
    expected = (patches[1].mean(dim=(2, 3), keepdim=True) * patches[0]).sum(dim=1).relu()[0]
    torch.testing.assert_close(torch.from_numpy(result.map.copy()), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP", "open_clip"])
def test_every_kind_of_method_applies(kind):
    """With gradients, with attention, and with perturbed images; one text rather than another is a target, too."""
    _, _, model = made(kind)
    methods = ["grad-cam", "saliency", "rise:masks=8", "occlusion:window=0.5"]
    if kind == "SigLIP":  # it pools by an attention of its own
        with pytest.raises(UnsupportedModelError, match="attention"):
            xai_abn.explain(model, "example:cat", ["attention-rollout"])
    else:
        methods.append("attention-rollout")
    found = xai_abn.explain(model, "example:cat", methods, [xai_abn.Difference("a dog", versus="a bicycle")])[0]
    assert all(record.map.ndim == 2 for record in found.values())
    assert {record.label for record in found.values() if record.class_specific} == {"a dog rather than a bicycle"}


def test_the_network_is_not_changed_and_its_text_side_is_left_out():
    """A copy of the classifier holds no text encoder."""
    network, _, model = made("CLIP")
    assert any(name.startswith("text_model") for name, _ in network.named_modules())
    assert not any("text" in name for name, _ in model.module.named_modules())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "one or several texts with words"),
        ([" "], "one or several texts with words"),
        (["a dog", "?!..."], r"one or several texts with words, got '\?!\.\.\.'"),
        ([3], "one or several texts with words"),
        ("a dog", "texts must be a list of texts"),
        (["a dog on a chair on the cat on a bicycle"], "has 11 tokens, and the model reads 8"),
    ],
)
def test_wrong_texts_are_refused(texts, message):
    """Each with what was expected."""
    with pytest.raises(InvalidInputError, match=message):
        made("CLIP", texts)


def test_wrong_models_and_processors_are_refused():
    """A classifier has no text side; a tokenizer alone does not know how images are prepared."""
    network, processor = clip()
    with pytest.raises(UnsupportedModelError, match="Linear does not compare images with texts"):
        xai_abn.zero_shot(nn.Linear(2, 2), processor, TEXTS)
    with pytest.raises(InvalidInputError, match=r"needs its processor, .* AutoProcessor\.from_pretrained"):
        xai_abn.zero_shot(network, processor.tokenizer, TEXTS)
    with pytest.raises(InvalidInputError, match=r"needs its tokenizer, as of open_clip\.get_tokenizer"):
        xai_abn.zero_shot(openai()[0], None, TEXTS)
    with pytest.raises(InvalidInputError, match="tokens, and the model reads 16"):
        xai_abn.zero_shot(*openai(), ["word " * 30])


def test_a_saved_network_takes_texts_as_labels(tmp_path):
    """By name, with a list or a file; without texts the message asks for them."""
    network, processor, model = made("CLIP")
    network.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    inputs = torch.randn(1, 3, SIZE, SIZE)
    for labels in (TEXTS, tmp_path / "texts.txt"):
        loaded = xai_abn.load_model(f"hf:{tmp_path / 'clip'}", labels=labels)
        assert (loaded.labels, loaded.preprocess) == (tuple(TEXTS), model.preprocess)
        torch.testing.assert_close(loaded.module(inputs), model.module(inputs))
    with pytest.raises(InvalidInputError, match=r"compares images with texts; give them as labels=\[...\] or --labels"):
        xai_abn.load_model(f"hf:{tmp_path / 'clip'}")
