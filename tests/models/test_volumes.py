"""Networks for volumes and clips: their layers are found, and their maps are those of plain autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
import transformers
from support import check_error, make_images
from torch import nn
from volumes import CLASSES, Net3d, UNet3d, mvit, net3d, seeded_volumes, swin3d

import xai_abn
from xai_abn.errors import InvalidInputError, UnsupportedModelError, XaiAbnError

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def features_and_gradients(network, layer, inputs, score):
    """The output of a layer and the gradient of a score, by a hook and one backward pass over the whole network."""
    kept = []
    hook = network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(score(network(inputs.clone().requires_grad_())), kept)
    finally:
        hook.remove()
    return kept[0].detach(), gradient


def plain_grad_cam(values, gradients):
    """Of values (N, C, d, h, w)."""
    return (gradients.mean((2, 3, 4), keepdim=True) * values).sum(1).relu().numpy()


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max() + 1e-30)


def test_the_cam_family_on_a_small_network():
    """Maps are those of plain autograd, (d, h, w); CAM adds up to the logit."""
    model, volumes = net3d(), seeded_volumes(2, 1, 12, 16, 20)
    assert model.target_layer == "body"
    values, gradients = features_and_gradients(model.module, "body", volumes, lambda y: y[:, 1].sum())
    results = xai_abn.explain(model, volumes, ["cam", "grad-cam", "hires-cam", "layer-cam"], 1)
    head = model.module.fc
    expected = {
        "cam": torch.einsum("ncdhw,c->ndhw", values, head.weight[1]).detach().numpy(),
        "grad-cam": plain_grad_cam(values, gradients),
        "hires-cam": (gradients * values).sum(1).numpy(),
        "layer-cam": (gradients.relu() * values).sum(1).relu().numpy(),
    }
    for row, result in enumerate(results):
        for method, maps in expected.items():
            assert result[method].map.shape == (6, 4, 5)
            close(result[method].map, maps[row])
        assert abs(result["cam"].map.mean() + head.bias[1].item() - result["cam"].score) < 1e-5


#: Network, size of its clips, the layer that is found, and how its output becomes (N, C, d, h, w).
VIDEO = {
    "r3d_18": (lambda: torchvision.models.video.r3d_18(num_classes=CLASSES), (8, 48, 48), "layer4", lambda y: y),
    "swin3d": (swin3d, (8, 32, 32), "norm", lambda y: y.movedim(-1, 1)),
    "mvit": (mvit, (8, 64, 64), "blocks.2.norm1", lambda y: y[:, 1:].transpose(1, 2).unflatten(2, (4, 8, 8))),
}


@pytest.mark.parametrize("name", VIDEO)
def test_grad_cam_of_torchvision_is_that_of_plain_autograd(name):
    """Channels first, channels last, and tokens behind a class token."""
    build, size, layer, to_maps = VIDEO[name]
    torch.manual_seed(0)
    network = build().eval()
    model = xai_abn.wrap(network, example_input=torch.zeros(1, 3, *size))
    assert model.target_layer == layer
    clips = seeded_volumes(1, 3, *size)
    parts = features_and_gradients(network, layer, clips, lambda y: y[:, 2].sum())
    found = xai_abn.explain(model, clips, "grad-cam", 2)[0]["grad-cam"].map
    close(found, plain_grad_cam(*map(to_maps, parts))[0])


def test_a_network_with_channels_last_on_any_grid():
    """Where the shape does not tell which axes are positions, noise in a part of the volume does."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mlp, self.fc = nn.Conv3d(1, 6, 3, 2, 1), nn.Linear(6, 5), nn.Linear(5, CLASSES)

        def forward(self, x):
            return self.fc(self.mlp(self.conv(x).permute(0, 2, 3, 4, 1)).relu().mean((1, 2, 3)))

    torch.manual_seed(0)
    network = Last().eval()
    model = xai_abn.wrap(network, example_input=torch.zeros(1, 1, 16, 12, 14), layer="mlp")
    volume = seeded_volumes(1, 1, 16, 12, 14)
    parts = features_and_gradients(network, "mlp", volume, lambda y: y[:, 0].sum())
    found = xai_abn.explain(model, volume, "grad-cam", 0)[0]["grad-cam"].map
    assert found.shape == (8, 6, 7)
    close(found, plain_grad_cam(*(p.movedim(-1, 1) for p in parts))[0])


HUGGING_FACE = {
    "videomae": lambda: transformers.VideoMAEForVideoClassification(
        transformers.VideoMAEConfig(image_size=64, num_frames=8, num_labels=CLASSES, **SMALL)
    ),
    "vivit": lambda: transformers.VivitForVideoClassification(
        transformers.VivitConfig(image_size=64, num_frames=8, tubelet_size=[2, 16, 16], num_labels=CLASSES, **SMALL)
    ),
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_networks_of_hugging_face_take_clips_as_all_others_do(name):
    """(N, C, T, H, W), though they themselves take the frames first; tokens are the patches of each pair of frames."""
    torch.manual_seed(0)
    network = HUGGING_FACE[name]().eval()
    model = xai_abn.wrap(network)
    clips = seeded_volumes(1, 3, 8, 64, 64)
    layer = model.target_layer.removeprefix("network.")
    first = 1 if name == "vivit" else 0
    values, gradients = features_and_gradients(network, layer, clips.transpose(1, 2), lambda y: y.logits[:, 1].sum())
    expected = plain_grad_cam(
        *(p[:, first:].transpose(1, 2).unflatten(2, (4, 4, 4)).detach() for p in (values, gradients))
    )
    result = xai_abn.explain(model, clips, ["grad-cam", "attention-rollout"], 1)[0]
    close(result["grad-cam"].map, expected[0])
    assert result["attention-rollout"].map.shape == (4, 4, 4)
    assert "assumed" in result["grad-cam"].notes[0]


def test_a_network_whose_tokens_are_in_another_order_is_refused():
    """TimeSformer lays out the frames of a patch side by side; methods that read no layer still work."""
    torch.manual_seed(0)
    config = transformers.TimesformerConfig(image_size=64, num_frames=8, num_labels=CLASSES, **SMALL)
    model = xai_abn.wrap(transformers.TimesformerForVideoClassification(config).eval())
    clip = seeded_volumes(1, 3, 8, 64, 64)
    with pytest.raises(UnsupportedModelError, match=r"TimesformerFor.* tokens that do not fit a grid"):
        xai_abn.explain(model, clip, "grad-cam", 0)
    with pytest.raises(UnsupportedModelError, match="no recognizable grid"):
        xai_abn.explain(xai_abn.wrap(model.module.network, layer="network.timesformer.layernorm"), clip, "grad-cam", 0)
    assert xai_abn.explain(model, clip, "saliency", 0)[0]["saliency"].map.shape == (8, 64, 64)


def test_a_name_of_hugging_face_for_video_says_what_to_do(tmp_path):
    """Its image processor does not tell how frames are resized."""
    HUGGING_FACE["videomae"]().save_pretrained(tmp_path / "video")
    with pytest.raises(InvalidInputError, match=r"xai_abn\.wrap"):
        xai_abn.load_model(f"hf:{tmp_path / 'video'}")


def test_frames_in_front_of_channels_are_refused():
    """Else occlusion would blank color channels as if they were slices."""

    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.fc(self.conv(x.flatten(0, 1)).mean((2, 3)).unflatten(0, x.shape[:2]).mean(1))

    with pytest.raises(UnsupportedModelError, match="frames in front of channels"):
        xai_abn.wrap(Frames(), example_input=torch.zeros(1, 6, 3, 16, 16))


def test_a_class_in_a_region_of_a_volume():
    """Of a U-Net: the mean score over a mask, by plain autograd; a point is refused."""
    torch.manual_seed(0)
    network = UNet3d().eval()
    model = xai_abn.wrap(network, example_input=torch.zeros(1, 1, 8, 16, 16))
    volume = seeded_volumes(1, 1, 8, 16, 16)
    region = np.zeros((8, 16, 16), bool)
    region[2:6, 4:8, 8:12] = True
    parts = features_and_gradients(network, "bottom", volume, lambda y: y[0, 2, 1:3, 2:4, 4:6].mean())
    found = xai_abn.explain(model, volume, "grad-cam", xai_abn.SegmentationTarget(2, region))[0]["grad-cam"]
    assert found.layer == "bottom"
    close(found.map, plain_grad_cam(*parts)[0])
    assert xai_abn.explain(model, volume, "grad-cam")[0]["grad-cam"].map.shape == (2, 4, 4)
    with pytest.raises(InvalidInputError, match="mask of truth values"):
        xai_abn.explain(model, volume, "grad-cam", xai_abn.SegmentationTarget(2, (3, 3)))


REFUSED = {
    "no channels": (torch.zeros(12, 16, 20), "add an axis for the channels"),
    "one slice": (torch.zeros(1, 1, 16, 20), "at least two slices"),
    "nan": (torch.full((1, 12, 16, 20), float("nan")), "finite"),
    "channels": (torch.zeros(3, 12, 16, 20), "got 3 channels"),
    "integers": (torch.zeros(1, 12, 16, 20, dtype=torch.long), "float tensor"),
    "array": (np.zeros((12, 16, 20)), "NIfTI"),
    "image": ("scan.png", "NIfTI"),
    "missing": ("scan.nii.gz", "scan.nii.gz"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_volume_is_refused(name):
    """In one sentence."""
    volume, text = REFUSED[name]
    with pytest.raises(XaiAbnError, match=text) as caught:
        xai_abn.explain(net3d(), volume, "grad-cam")
    check_error(caught.value)


def test_a_network_with_a_fixed_number_of_frames_refuses_others():
    """With the reason that it gives."""
    model = xai_abn.wrap(mvit().eval(), example_input=torch.zeros(1, 3, 8, 64, 64))
    with pytest.raises(UnsupportedModelError, match="cannot be run on an input"):
        xai_abn.explain(model, seeded_volumes(3, 6, 64, 64), "saliency")


def test_a_network_of_volumes_needs_an_example():
    """Without one it is tried on an image, and the error says what to give."""
    with pytest.raises(UnsupportedModelError, match="example_input"):
        xai_abn.explain(Net3d(3).eval(), seeded_volumes(3, 12, 16, 20), "grad-cam")


def test_what_is_made_for_images_refuses_networks_of_volumes(tmp_path):
    """An Attention Branch Network, the export to ONNX, a benchmark."""
    from xai_abn.benchmark import benchmark
    from xai_abn.datasets import read_dataset
    from xai_abn.integrations.onnx import export_onnx

    model, data = net3d(), read_dataset(f"coco:{make_images(tmp_path, 2)}")
    for call, text in (
        (lambda: xai_abn.abn_from(model.module), "does not take an image"),
        (lambda: export_onnx(model, tmp_path / "net.onnx"), "only networks for images"),
        (lambda: benchmark(model, data, ["grad-cam"], ["deletion"], tmp_path / "run.sqlite"), "xai_abn.metrics"),
    ):
        with pytest.raises(XaiAbnError, match=text) as caught:
            call()
        check_error(caught.value)
