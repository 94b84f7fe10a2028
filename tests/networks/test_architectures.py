"""The published networks by name: sizes, parts, and what the released code's files become."""

from __future__ import annotations

import io
from functools import partial

import pytest
import timm
import torch
from support import released_names
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

import xai_abn
from xai_abn.errors import CheckpointError, InvalidInputError, OutputError, UnknownNameError, UnsupportedModelError
from xai_abn.models.zoo import load_model
from xai_abn.networks import released_code, weights
from xai_abn.networks.architectures import architectures, create_model, find_architecture
from xai_abn.networks.released_code import convert, convert_file, rename

# reference/abn.md, section 1.2, counted in the released code: million parameters in all, in the attention branch and in
# the baseline. The released SE-ResNet has no map head, which is 1000 * 9 + 2 parameters here.
PUBLISHED = {
    "resnet20": (0.50, 0.22, 0.28),
    "resnet110-bottleneck": (3.06, 1.33, 1.73),
    "densenet-bc-100-12": (1.12, 0.32, 0.80),
    "wrn-28-10": (64.48, 27.94, 36.54),
    "resnext29-8x64d": (60.88, 26.36, 34.52),
    "resnet18": (21.61, 9.92, 11.69),
    "resnet50": (43.58, 18.03, 25.56),
    "resnet101": (62.58, 18.03, 44.55),
    "resnet152": (78.22, 18.03, 60.19),
    "seresnet50": (47.69 + 9002e-6, 19.60 + 9002e-6, 28.09),
}


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def on_meta(name: str, classes: int | None = None, mechanism: str | None = None) -> nn.Module:
    """Build a network whose weights have shapes and no values."""
    classes = classes or (100 if architectures[name].size == 32 else 1000)
    with torch.device("meta"), weights.WithoutRandomWeights():
        return create_model(name, classes, mechanism=mechanism)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_equal_those_of_the_released_code(name):
    """ABN, attention branch and baseline have as many parameters as published, to the last digit given."""
    network = on_meta(name, mechanism="residual")
    total, branch, base = PUBLISHED[name]
    assert millions(network) == pytest.approx(total, abs=0.0051)
    assert millions(network.attention_branch) == pytest.approx(branch, abs=0.0051)
    assert millions(on_meta(name)) == pytest.approx(base, abs=0.0051)
    assert millions(network) - millions(network.attention_branch) == pytest.approx(millions(on_meta(name)), abs=1e-9)


@pytest.mark.parametrize(("name", "layers"), [("resnet20", 20), ("resnet110", 110), ("resnet110-bottleneck", 164)])
def test_the_depth_is_the_true_one(name, layers):
    """ResNet-110 has 110 layers of weights; the released code's has 164, and is called so in its description."""
    network = on_meta(name)
    blocks = [m for m in network.modules() if isinstance(m, BasicBlock | Bottleneck)]
    weights = sum(2 if isinstance(b, BasicBlock) else 3 for b in blocks) + 2
    assert weights == layers
    if name.endswith("bottleneck"):
        assert str(layers) in architectures[name].description


@pytest.mark.parametrize("name", ["resnet20", "seresnet20", "densenet-bc-100-12"])
def test_a_map_of_zeros_leaves_the_baseline(name):
    """With M = 0 the residual ABN gives its own backbone's logits."""
    torch.manual_seed(0)
    backbone = find_architecture(name).build(10).eval()
    from xai_abn.networks.architectures import abn_arguments
    from xai_abn.networks.build import abn_from

    network = abn_from(backbone, **abn_arguments(name))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        answer = network(images, attention=torch.zeros(1, 1, *network(images).attention_map.shape[2:]))
        torch.testing.assert_close(answer.logits, backbone(images), atol=1e-5, rtol=1e-5)


def test_the_branch_is_drawn_anew_and_the_backbone_is_not():
    """Untrained ABNs of one seed share the backbone's weights, whatever the mechanism; the branch has its own."""
    made = []
    for mechanism in ("residual", "product", "concatenation", "auxiliary"):
        torch.manual_seed(3)
        made.append(create_model("resnet20", 10, mechanism=mechanism))
    torch.manual_seed(3)
    plain = create_model("resnet20", 10, mechanism=None)
    assert isinstance(plain.layer3, nn.Module)
    for network in made:
        assert torch.equal(network.feature_extractor.conv1.weight, plain.conv1.weight)
        assert torch.equal(network.perception_branch.fc.weight, plain.fc.weight)
        stage = network.attention_branch.stage.layer3[0].conv1.weight
        assert not torch.equal(stage, plain.layer3[0].conv1.weight)
        assert torch.equal(stage, made[0].attention_branch.stage.layer3[0].conv1.weight)


def test_the_auxiliary_mechanism_ignores_the_map():
    """It is the baseline with a second classifier: no map changes its logits."""
    torch.manual_seed(0)
    network = create_model("resnet20", 10, mechanism="auxiliary").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for value in (0.0, 1.0):
            answer = network(images, attention=torch.full((1, 1, 16, 16), value))
            assert torch.equal(answer.logits, network(images).logits)


def test_unknown_architectures_name_the_nearest():
    """A slip of the pen is answered with what was meant."""
    with pytest.raises(UnknownNameError, match="resnet20"):
        create_model("resnet2O", 10)
    for library, name in (("timm", "resnett18"), ("timm", "resnet10t.no_such_tag"), ("torchvision", "resnett18")):
        for make in (create_model, partial(load_model, weights="random")):
            with pytest.raises(UnknownNameError, match=f"unknown {library} model {name!r}.*resnet1"):
                make(f"{library}:{name}", classes=10)
    assert create_model("timm:resnet10t.c3_in1k", 10, mechanism=None).num_classes == 10  # a tag of timm's weights
    with pytest.raises(InvalidInputError, match="at least one class"):
        create_model("resnet20", 0)


# --- the released code's files -------------------------------------------------------------------------------------


SMALL = [
    ("resnet20", "resnet"),
    ("resnet26", "resnet"),
    ("resnet44-bottleneck", "resnet"),
    ("resnet50-bottleneck", "resnet"),
    ("densenet-bc-100-12", "densenet"),
    ("densenet-bc-40-8", "densenet"),
    ("wrn-10-2", "wrn"),
    ("wrn-16-4", "wrn"),
    ("resnext11-1x64d", "resnext"),
    ("resnext20-2x64d", "resnext"),
    ("resnet18", "resnet"),
]


@pytest.mark.parametrize(("name", "family"), SMALL)
def test_released_names_come_back_as_the_same_network(name, family, tmp_path):
    """Depth and width are read from names and shapes; every tensor finds its place; the checkpoint loads by itself."""
    torch.manual_seed(0)
    network = create_model(name, 10).eval()
    torch.save({"state_dict": released_names(network, family)}, tmp_path / "m.pth.tar")
    found = convert_file(tmp_path / "m.pth.tar", tmp_path / "m.safetensors")
    assert (found.arch, found.classes) == (name, 10)
    theirs, own = load_model(tmp_path / "m.safetensors").module.state_dict(), network.state_dict()
    unused = {key for key in own if family == "resnext" and key.startswith("attention_branch.bn_att.")}
    assert theirs.keys() == own.keys() - unused
    assert all(torch.equal(value, own[key]) for key, value in theirs.items())


LARGE = ["resnet1202-bottleneck", "densenet-bc-190-40", "wrn-40-10", "resnext29-16x64d", "resnet152"]


@pytest.mark.parametrize("name", LARGE)
def test_the_size_of_any_released_network_is_read(name):
    """The largest of the released recipes, without memory for their weights."""
    plain = weights.on_meta(partial(find_architecture(name).build, 10))
    assert released_code._name_of(plain.state_dict()) == name
    assert released_code._misfit(name, 10, plain.state_dict()) is None


def test_a_dense_network_of_another_compression_is_refused():
    """Its first transition keeps all channels: the error names the tensor, and nothing is cut to fit."""
    released = released_names(create_model("densenet-bc-40-8", 10), "densenet")
    name = "module.trans1.conv1.weight"
    released[name] = torch.cat([released[name]] * 2)
    with pytest.raises(
        CheckpointError, match=r"not those of densenet-bc-40-8 with 10 classes: .*trans1\.conv1\.weight"
    ):
        convert(released)


@pytest.mark.parametrize("name", ["resnet21", "resnet2", "wrn-17-4", "densenet-bc-41-12", "resnext30-8x64d"])
def test_a_depth_that_no_network_has_is_refused(name):
    """Depths come in steps of a whole block in each stage."""
    with pytest.raises(InvalidInputError, match=r"the depth of a .* for CIFAR is \dn \+ \d, got"):
        create_model(name, 10)
    with pytest.raises(InvalidInputError, match=r"largest network of its kind is wrn-200-32"):
        create_model("wrn-28-100000", 10)


@pytest.mark.parametrize(("name", "family"), [("wrn-28-10", "wrn"), ("resnext29-8x64d", "resnext"), ("resnet50", "")])
def test_released_names_of_the_large_networks_are_ours(name, family):
    """Renamed, they are the names and shapes of our network's parts."""
    network = on_meta(name, 10, "residual")
    renamed = rename({k.removeprefix("module."): v for k, v in released_names(network, family).items()})
    parts = {
        key if key.startswith("attention_branch.") else key.partition(".")[2]: value.shape
        for key, value in network.state_dict().items()
        if not key.startswith("mechanism.")
    }
    assert {key: value.shape for key, value in renamed.items()} == parts


def test_a_released_file_becomes_a_checkpoint(tmp_path):
    """A .pth.tar of the released trainer converts, loads by itself and predicts as before."""
    torch.manual_seed(0)
    network = create_model("resnet20", 10).eval()
    torch.save({"epoch": 3, "state_dict": released_names(network, "resnet"), "best_acc": 61.0}, tmp_path / "m.pth.tar")
    convert_file(tmp_path / "m.pth.tar", tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.module(images).logits, network(images).logits)
    assert model.preprocess.size == 32
    convert_file(tmp_path / "m.pth.tar", tmp_path / "m.safetensors")
    with pytest.raises(OutputError, match="is not a checkpoint of xai-abn"):
        convert_file(tmp_path / "m.pth.tar", tmp_path / "m.pth.tar")


def test_a_classifier_with_auxiliary_heads_answers_with_logits_alone():
    """GoogLeNet in training gives the logits, which is what the losses take."""
    network = create_model("torchvision:googlenet", 3, mechanism=None)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_foreign_files_are_refused_and_never_executed(tmp_path):
    """No attention branch, another network, SE-ResNet, a pickle with code: one clear error each."""
    state = released_names(create_model("resnet20", 10), "resnet")
    with pytest.raises(CheckpointError, match=r"no att_conv\.weight"):
        convert(create_model("resnet20", 10, mechanism=None).state_dict())
    with pytest.raises(CheckpointError, match="not those of resnet32 with 10 classes"):
        convert(state, arch="resnet32")
    with pytest.raises(CheckpointError, match="not those of any network of the released code"):
        convert({k: v for k, v in state.items() if "layer1" not in k})
    with pytest.raises(CheckpointError, match=r"resnet20 with 10 classes: 1 are missing, such as fc\.bias"):
        convert({k: v for k, v in state.items() if k != "module.fc.bias"})
    with pytest.raises(UnsupportedModelError, match="SE-ResNet"):
        convert({k: v for k, v in state.items() if "att_conv3" not in k})
    torch.save({"state_dict": state, "trap": Trap(tmp_path / "sprung")}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="not a plain weights file"):
        convert_file(tmp_path / "bad.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out.safetensors").exists()


TOKENS = "computes on tokens, and of transformers only timm's VisionTransformer can become an ABN"


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("pit_xs_distilled_224", "transformers.1", TOKENS),
        ("cait_xxs24_224", None, TOKENS),
        ("cait_xxs24_224", "blocks.11", TOKENS),
        ("eva02_tiny_patch14_224", None, TOKENS),
        ("volo_d1_224", None, TOKENS),
        ("visformer_tiny", None, "does not run without its stride"),
        ("convmixer_768_32", None, "name the layer to split after"),
    ],
)
def test_networks_that_cannot_be_cut_are_refused(name, layer, message, capfd):
    """Another layer is asked for only where there may be one; torch.fx prints nothing."""
    network = timm.create_model(name, num_classes=3).eval()
    with pytest.raises(UnsupportedModelError, match=message):
        xai_abn.abn_from(network, layer=layer)
    assert capfd.readouterr().err == ""


def test_an_abn_is_exported_as_a_program_with_its_map():
    """torch.export writes and reads it."""
    network = xai_abn.abn_from(timm.create_model("resnet18", num_classes=3).eval(), input_size=64)
    images = torch.randn(1, 3, 64, 64)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network, (images,)), buffer)
    buffer.seek(0)
    found = torch.export.load(buffer).module()(images)
    assert type(found) is type(network(images))
    torch.testing.assert_close(found, network(images))
