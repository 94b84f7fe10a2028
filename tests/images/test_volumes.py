"""Volumes from NIfTI files, and clips from videos, GIFs and arrays."""

from __future__ import annotations

import builtins

import cv2
import nibabel
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from volumes import Net3d, net3d, seeded_volumes

import xai_abn
from xai_abn.errors import ImageLoadError, InvalidInputError
from xai_abn.images.clips import ClipPreprocess, evenly_spaced, load_clip
from xai_abn.images.volumes import load_volume, upright
from xai_abn.models.metadata import as_preprocess

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 3, 0, -120], [0, 0, 4, -70], [0, 0, 0, 1]])


@pytest.fixture
def scan(tmp_path):
    """A volume of 12x16x20 as NIfTI file."""
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(seeded_volumes(12, 16, 20).numpy(), AFFINE), path)
    return path


@pytest.fixture
def frames():
    """Forty frames (40, 48, 64, 3) that get brighter, with noise."""
    draw = np.random.default_rng(0)
    return np.stack([np.clip(draw.normal(5 * k + 20, 9, (48, 64, 3)), 0, 255).astype(np.uint8) for k in range(40)])


def test_a_nifti_file_is_explained_as_its_values(scan):
    """And its map is saved on its grid with its affine, in its own units."""
    model = net3d()
    record = xai_abn.explain(model, scan, "grad-cam", 1)["grad-cam"]
    direct = xai_abn.explain(model, seeded_volumes(12, 16, 20)[None], "grad-cam", 1)["grad-cam"]
    np.testing.assert_array_equal(record.map, direct.map)
    record.save_nifti(scan.with_name("map.nii"))
    saved = nibabel.load(scan.with_name("map.nii"))
    np.testing.assert_array_equal(saved.affine, AFFINE)
    grid = torch.nn.functional.interpolate(torch.tensor(record.map)[None, None], (12, 16, 20), mode="trilinear")
    np.testing.assert_allclose(saved.get_fdata(), grid[0, 0].numpy(), atol=1e-6)
    direct.save_nifti(scan.with_name("like.nii.gz"), like=scan)
    np.testing.assert_array_equal(nibabel.load(scan.with_name("like.nii.gz")).affine, AFFINE)
    with pytest.raises(InvalidInputError, match="like="):
        direct.save_nifti(scan.with_name("other.nii"))
    other = xai_abn.explain(model, seeded_volumes(1, 16, 12, 20), "grad-cam", 1)["grad-cam"]
    with pytest.raises(InvalidInputError, match="its grid"):
        other.nifti(like=scan)


def test_a_fourth_axis_is_channels(tmp_path):
    """A file of two axes is refused, and one that is no NIfTI file."""
    values = seeded_volumes(6, 7, 8, 2).numpy()
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "a.nii")
    np.testing.assert_array_equal(load_volume(tmp_path / "a.nii").values, np.moveaxis(values, 3, 0))
    nibabel.save(nibabel.Nifti1Image(values[:, :, 0, 0], AFFINE), tmp_path / "b.nii")
    (tmp_path / "c.nii.gz").write_bytes(b"no volume")
    for name, text in (("b.nii", "three axes"), ("c.nii.gz", "not a NIfTI file")):
        with pytest.raises(ImageLoadError, match=text):
            load_volume(tmp_path / name)


def test_without_nibabel_the_error_names_the_extra(scan, monkeypatch):
    """It is not installed with the package."""
    real = builtins.__import__

    def importing(name, *more, **options):
        if name == "nibabel":
            raise ImportError(name)
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(InvalidInputError, match=r"xai-abn\[volumes\]"):
        load_volume(scan)


def test_slices_are_drawn_upright():
    """As nibabel's canonical order, with the slices first and the front on top, whatever the order of the file."""
    values = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        affine = np.eye(4)
        affine[:3, :3] = np.diag([-2.0, 3, -4])[:, order]
        canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(values.astype(np.int16), affine)).get_fdata()
        np.testing.assert_array_equal(upright(values, affine), canonical.transpose(2, 1, 0)[:, ::-1])


PRESETS = [torchvision.models.video.R3D_18_Weights, torchvision.models.video.S3D_Weights]
PRESETS += [torchvision.models.video.MViT_V2_S_Weights, torchvision.models.video.Swin3D_T_Weights]


@pytest.mark.parametrize("weights", PRESETS)
def test_the_preprocessing_of_torchvision(weights, frames):
    """Read from the weights, it gives what torchvision's gives, to a level of 256 or two."""
    preset = weights.DEFAULT.transforms()
    preprocess = as_preprocess(preset)
    prepared = preprocess.of_clip(load_clip_of(frames[:16]))
    expected = preset(torch.from_numpy(frames[:16]).permute(0, 3, 1, 2))
    assert prepared.tensor.shape == expected.shape
    assert float((prepared.tensor - expected).abs().max()) < 2 / 255 / min(preset.std)
    assert prepared.view.shape == (16, *(2 * s for s in expected.shape[2:]), 3)


def load_clip_of(frames):
    from xai_abn.images.clips import clip_of

    return clip_of(frames, len(frames))


def test_frames_of_files_are_evenly_spaced(frames, tmp_path):
    """The middle of as many equal parts, of a GIF, a video and an array; a note says which."""
    images = [Image.fromarray(f) for f in frames]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
    assert evenly_spaced(40, 4) == [5, 15, 25, 35]
    for name in ("a.gif", "a.avi"):
        clip = load_clip(tmp_path / name, 4)
        np.testing.assert_allclose(clip.frames.mean((1, 2, 3)), frames[[5, 15, 25, 35]].mean((1, 2, 3)), atol=3)
        assert clip.notes == ("4 of 40 frames, evenly spaced: 5, 15, 25, 35",)
        with pytest.raises(ImageLoadError, match="has 40 frames, and the network takes 41"):
            load_clip(tmp_path / name, 41)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "bad.gif").write_bytes(b"no image")
    for name in ("bad.mp4", "bad.gif", "none.mp4"):
        with pytest.raises(ImageLoadError, match=name):
            load_clip(tmp_path / name, 4)


def test_a_clip_is_explained_in_its_place(frames, tmp_path):
    """A map of the size of the clip is 0 outside of the part that the network saw."""
    torch.manual_seed(0)
    preprocess = ClipPreprocess(size=16, frames=8, resized=(20, 30), crop="squash-center")
    model = xai_abn.wrap(Net3d(3).eval(), preprocess=preprocess)
    images = [Image.fromarray(f) for f in frames]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    record = xai_abn.explain(model, tmp_path / "a.gif", "layer-cam", 1)["layer-cam"]
    assert record.map.shape == (4, 4, 4)
    assert record.image_size == (8, 48, 64)
    whole = record.heatmap(record.image_size)
    left, top, right, bottom = (round(v) for v in record.region)
    assert (left, top, right, bottom) == (15, 5, 49, 43)
    inside = whole[:, top:bottom, left:right]
    assert inside.max() == 1
    assert whole.sum() == pytest.approx(inside.sum())
    assert record.mask(0.5).shape == (8, 48, 64)
    for wrong in (frames[..., 0], frames.astype(np.float32)):
        with pytest.raises(InvalidInputError, match="frames"):
            xai_abn.explain(model, wrong, "layer-cam")
    same = xai_abn.explain(model, frames, "layer-cam", 1)["layer-cam"]
    assert same.map.shape == record.map.shape


def test_a_size_that_the_resized_frames_do_not_cover_is_refused():
    """With both sizes."""
    with pytest.raises(InvalidInputError, match="resized"):
        ClipPreprocess(size=200, resized=(128, 171), crop="squash-center")
