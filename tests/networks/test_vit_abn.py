"""Attention Branch Networks of Vision Transformers: identities, the way through the library, a toy problem."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models import VisionTransformer
from torch import nn
from typer.testing import CliRunner

import xai_abn
from xai_abn.cli.main import app
from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError
from xai_abn.images.preprocess import Preprocess
from xai_abn.integrations.onnx import export_onnx
from xai_abn.networks.abn import ABNOutput, mechanisms
from xai_abn.networks.checkpoint import CheckpointConfig, save_checkpoint
from xai_abn.networks.layout import Layout
from xai_abn.networks.vit_abn import OnPatches, Tokens
from xai_abn.training import distill

KINDS = {
    "class token": {},
    "registers": {"reg_tokens": 4},
    "average": {"global_pool": "avg", "class_token": False},
    "average and maximum": {"global_pool": "avgmax"},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "norms before and behind": {"pre_norm": True, "fc_norm": True, "qk_norm": True},
    "any size": {"dynamic_img_size": True},
    "no norm": {"final_norm": False},
}


def transformer(**options):
    """A seeded ViT of four blocks for 64-pixel inputs, moved off its start so that no step is an identity."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        **{"img_size": 64, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5, **options}
    )
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return vit.eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mechanism", ["residual", "concatenation"])
def test_a_map_of_zeros_gives_the_transformer(kind, mechanism, inputs):
    """With M = 0 the perception branch computes what the transformer does, however it pools."""
    vit = transformer(**KINDS[kind])
    network = xai_abn.abn_from(vit, mechanism=mechanism)
    with torch.no_grad():
        edited = network(inputs, attention=torch.zeros(1, 1, 4, 4))
        torch.testing.assert_close(edited.logits, vit(inputs), rtol=1e-5, atol=1e-5)
        if mechanism == "residual":
            assert not torch.allclose(network(inputs).logits, edited.logits, atol=1e-4)


def test_a_map_of_ones_gives_the_transformer_for_the_product(inputs):
    """With M = 1, g*M is g."""
    vit = transformer()
    with torch.no_grad():
        output = xai_abn.abn_from(vit, mechanism="product")(inputs, attention=torch.ones(1, 1, 4, 4))
        torch.testing.assert_close(output.logits, vit(inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_are_on_the_patch_grid(kind, inputs):
    """M is (N, 1, h, w) in [0, 1]; class maps (N, K, h, w) average to the attention branch's logits."""
    output = xai_abn.abn_from(transformer(**KINDS[kind]))(inputs)
    assert isinstance(output, ABNOutput)
    assert output.attention_map.shape == (3, 1, 4, 4)
    assert output.class_maps.shape == (3, 5, 4, 4)
    assert 0 <= output.attention_map.min() < output.attention_map.max() <= 1
    torch.testing.assert_close(output.class_maps.mean(dim=(2, 3)), output.attention_logits)


def test_the_grid_is_the_models_not_the_square_root():
    """An image of 64x32 has a grid of 4x2; one of another size has its own where the transformer takes it."""
    fixed = xai_abn.abn_from(transformer(img_size=(64, 32)))
    assert fixed(torch.zeros(1, 3, 64, 32)).attention_map.shape == (1, 1, 4, 2)
    free = xai_abn.abn_from(transformer(dynamic_img_size=True, dynamic_img_pad=True))
    assert free(torch.zeros(1, 3, 80, 40)).class_maps.shape == (1, 5, 5, 3)
    with pytest.raises(AssertionError, match="height"):
        fixed(torch.zeros(1, 3, 80, 32))


@pytest.mark.parametrize("mechanism", mechanisms.names())
def test_the_mechanism_leaves_class_and_register_tokens_alone(mechanism):
    """The patches become what the mechanism makes of their grid; the tokens in front stay as they were."""
    values, attention = torch.randn(2, 3 + 6, 8), torch.rand(2, 1, 2, 3)
    tokens = Tokens(values, Layout("tokens", (2, 3), 3))
    plain = mechanisms[mechanism](8)
    found = OnPatches(plain)(tokens, attention)
    assert torch.equal(found.values[:, :3], values[:, :3])
    for i in range(6):
        patch, weight = values[:, 3 + i, :, None, None], attention[:, :, i // 3, i % 3, None, None]
        torch.testing.assert_close(found.values[:, 3 + i], plain(patch, weight.flatten(2)[..., None])[..., 0, 0])


def test_class_maps_start_as_the_classifiers_evidence_of_each_patch(inputs):
    """An untrained branch gives ReLU(w . patch + b) on the patches behind the final norm."""
    vit = transformer()
    network = xai_abn.abn_from(vit)
    with torch.no_grad():
        expected = vit.head(vit.forward_features(inputs)[:, 1:]).relu()
        found = network(inputs).class_maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_the_transformers_plus_the_branchs(kind):
    """Nothing is kept twice but what the attention branch copies: its blocks and norm."""
    vit = transformer(**KINDS[kind])
    network = xai_abn.abn_from(vit, layer="blocks.2")
    assert count(network) - count(network.attention_branch) == count(vit)
    assert count(network.attention_branch.stage) == count(vit.blocks[-1]) + count(vit.norm) + count(vit.fc_norm)


def test_building_leaves_the_transformer_alone():
    """The network shares no weights with the transformer, whose blocks, weights and mode stay."""
    vit = transformer().train()
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    network = xai_abn.abn_from(vit)
    assert not any(m.training for m in network.modules())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert vit.state_dict().keys() == before.keys()
    assert all(torch.equal(v, vit.state_dict()[k]) for k, v in before.items())
    assert vit.training


def test_the_split_is_named_as_for_other_networks(inputs):
    """abn_from takes the block behind which to split; by default two are left."""
    vit = transformer()
    assert len(xai_abn.abn_from(vit).perception_branch.vit.blocks) == 2
    assert len(xai_abn.abn_from(vit, layer="blocks.2").attention_branch.stage.blocks) == 1
    assert len(xai_abn.abn_from(vit, layer="blocks.0").perception_branch.vit.blocks) == 3


def test_meaningless_arguments_are_refused():
    """Each with what is possible instead."""
    vit = transformer()
    with pytest.raises(UnknownNameError, match=r"blocks\.2"):
        xai_abn.abn_from(vit, layer="blocks.3")
    with pytest.raises(InvalidInputError, match="strides to remove"):
        xai_abn.abn_from(vit, dilate=False)
    with pytest.raises(InvalidInputError, match="stage is for networks with strides"):
        xai_abn.abn_from(vit, stage="blocks")
    with pytest.raises(UnknownNameError, match="residual"):
        xai_abn.abn_from(vit, mechanism="residuel")
    with pytest.raises(InvalidInputError, match="shape"):
        xai_abn.abn_from(vit)(torch.zeros(2, 3, 64, 64), attention=torch.zeros(2, 1, 8, 2))


class GridlessEmbed(nn.Module):
    """A patch embedding that does not tell its grid."""

    def __init__(self, **options):
        super().__init__()
        self.inner = PatchEmbed(**options)
        self.num_patches = self.inner.num_patches

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), "VisionTransformerDistilled"),
        (lambda: transformer(num_classes=0), "head"),
        (lambda: transformer(global_pool=""), "pooling"),
        (lambda: transformer(patch_drop_rate=0.5), "patch_drop_rate"),
        (lambda: transformer(embed_layer=GridlessEmbed), "GridlessEmbed"),
    ],
)
def test_other_transformers_are_refused(build, message):
    """One error that says what it takes and what came."""
    with pytest.raises(UnsupportedModelError, match=f"timm's VisionTransformer.*{message}"):
        xai_abn.abn_from(build())


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_transformers_of_other_families_are_refused(name):
    """Windows, rotary embeddings: no Attention Branch Network can be made of them."""
    with pytest.raises(UnsupportedModelError):
        xai_abn.abn_from(timm.create_model(name, num_classes=2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An ABN of timm's smallest ViT, saved; the network and the path."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    arguments = {"layer": "blocks.3", "mechanism": "concatenation"}
    network = xai_abn.abn_from(timm.create_model("test_vit", num_classes=3), **arguments)
    look = Preprocess(size=64)
    save_checkpoint(path, network, CheckpointConfig("timm:test_vit", 3, network.description, look, ["a", "b", "c"]))
    return network, path


def test_a_checkpoint_rebuilds_it(checkpoint, inputs):
    """The four outputs are equal, also with a map given."""
    network, path = checkpoint
    model = xai_abn.load_model(path)
    assert model.is_abn
    with torch.no_grad():
        for given in (None, torch.rand(3, 1, 4, 4)):
            for mine, theirs in zip(
                model.module(inputs, attention=given), network(inputs, attention=given), strict=True
            ):
                torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(model.module.as_classifier()(inputs), network(inputs).logits)


def test_its_maps_come_through_explain(checkpoint):
    """abn, abn-class and grad-cam are on the patch grid; grad-cam reads the perception branch."""
    model = xai_abn.load_model(checkpoint[1])
    result = xai_abn.explain(model, "example:cat", ["abn", "abn-class", "grad-cam", "rise"], targets="b")
    assert {n: result[n].map.shape for n in ("abn", "abn-class", "grad-cam")} == dict.fromkeys(
        ("abn", "abn-class", "grad-cam"), (4, 4)
    )
    assert result["grad-cam"].layer.startswith("perception_branch.")
    assert not any(result[n].flaw for n in ("abn", "abn-class", "grad-cam", "rise"))
    inputs = model.preprocess(xai_abn.images.load_image("example:cat")).tensor[None]
    with torch.no_grad():
        output = model.module(inputs)
    torch.testing.assert_close(torch.tensor(result["abn"].map), output.attention_map[0, 0])
    torch.testing.assert_close(torch.tensor(result["abn-class"].map), output.class_maps[0, 1])


def test_the_command_line_explains_with_it(checkpoint, image_file, tmp_path):
    """`xai-abn explain --model FILE` draws its maps."""
    arguments = ["explain", str(image_file), "--model", str(checkpoint[1]), "--method", "abn,abn-class,grad-cam"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").glob("*.png"))) >= 3


def test_it_is_exported_with_its_maps(tmp_path):
    """The ONNX file gives logits, M and class maps for any batch, checked against PyTorch."""
    model = xai_abn.wrap(xai_abn.abn_from(transformer(), layer="blocks.2"), preprocess=Preprocess(size=64))
    done = export_onnx(model, tmp_path / "vit.onnx")
    assert done.outputs == ("logits", "attention_map", "class_maps")
    assert max(done.differences.values()) < 1e-4


def test_attention_methods_refuse_two_branches(checkpoint):
    """What follows attention from block to block would multiply blocks that run side by side."""
    model = xai_abn.load_model(checkpoint[1])
    for method in ("attention-rollout", "attention-relevance", "legrad"):
        with pytest.raises(UnsupportedModelError, match="parallel branches"):
            xai_abn.explain(model, "example:cat", method)


def test_distillation_refuses_it(checkpoint):
    """Its terms weigh whole feature maps."""
    with pytest.raises(UnsupportedModelError, match="class token"):
        distill(checkpoint[0], [])


def coloured_patches(number, generator):
    """Noise (N, 3, 32, 32) with one brighter 8x8 patch in one of the three channels, the class; where it is, (N,)."""
    images = torch.randn(number, 3, 4, 8, 4, 8, generator=generator)
    labels, places = torch.randint(3, (number,), generator=generator), torch.randint(16, (number,), generator=generator)
    images[torch.arange(number), labels, places // 4, :, places % 4] += 1.5
    return images.reshape(number, 3, 32, 32), labels, places


def test_it_learns_and_its_class_maps_find_what_decides():
    """Trained by the published loss, both branches answer right and class maps peak on the patch (chance: 1 of 16)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 3}
    vit = VisionTransformer(**options, class_token=False, global_pool="avg")
    network = xai_abn.abn_from(vit, layer="blocks.1").train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(150):
        images, labels, _ = coloured_patches(32, generator)
        output = network(images)
        loss = F.cross_entropy(output.attention_logits, labels) + F.cross_entropy(output.logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in network.parameters())
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])
    images, labels, places = coloured_patches(200, generator)
    with torch.no_grad():
        output = network.eval()(images)
    for logits in (output.logits, output.attention_logits):
        assert (logits.argmax(dim=1) == labels).float().mean() > 0.9
    peaks = output.class_maps[torch.arange(200), labels].flatten(1).argmax(dim=1)
    assert (peaks == places).float().mean() > 0.5
