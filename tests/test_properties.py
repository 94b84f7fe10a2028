"""Properties that hold for every input, on inputs that hypothesis makes up."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco

from xai_abn.benchmark.statistics import holm
from xai_abn.datasets.sample import AnnotatedObject
from xai_abn.errors import ImageLoadError, InvalidInputError
from xai_abn.heatmaps import unit_range, upsample
from xai_abn.images.loading import MIN_SIDE, decode_image
from xai_abn.images.preprocess import Preprocess
from xai_abn.metrics import Objects, deletion, entropy, gini, insertion, pointing_game
from xai_abn.settings import parse_options

#: The same examples in every run; a failure is reproducible.
every_time = settings(derandomize=True, deadline=None, max_examples=60, database=None)

sides = st.integers(1, 40)
names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)
values = st.text("abcdefghijklmnopqrstuvwxyz0123456789.:-", min_size=1, max_size=8)
#: Maps (h, w) whose values are far enough apart to be told apart in float32.
maps = arrays.arrays(
    np.float32, st.tuples(st.integers(2, 8), st.integers(2, 8)), elements=st.integers(-50, 50).map(float)
)


@every_time
@given(st.dictionaries(names, values, max_size=4))
def test_options_that_are_written_out_are_read_back(options):
    """NAME=VALUE,NAME=VALUE in, the same mapping out, whatever the spaces."""
    assert parse_options(",".join(f"{name}={value}" for name, value in options.items())) == options
    assert parse_options(" , ".join(f" {name} = {value} " for name, value in options.items())) == options


@every_time
@given(st.text(max_size=20))
def test_any_text_is_options_or_refused(text):
    """Nothing but a mapping of non-empty text or an InvalidInputError comes out."""
    try:
        options = parse_options(text)
    except InvalidInputError:
        return
    assert all(name and value for name, value in options.items())


@every_time
@given(
    width=sides,
    height=sides,
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"]),
    kind=st.sampled_from(["PNG", "TIFF", "JPEG", "WEBP", "BMP", "GIF"]),
    seed=st.integers(0, 5),
)
def test_an_image_of_any_mode_is_decoded_to_rgb_or_refused(width, height, mode, kind, seed):
    """Every mode and format that Pillow writes is read as 8-bit RGB of the same size; tiny images are refused."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    image = Image.fromarray(noise)
    image = Image.fromarray(noise.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    try:
        image.save(file, kind)
    except (OSError, ValueError):
        return  # the format has no such mode
    if min(width, height) < MIN_SIDE:
        with pytest.raises(ImageLoadError):
            decode_image(file.getvalue())
        return
    loaded = decode_image(file.getvalue()).image
    assert (loaded.mode, loaded.size) == ("RGB", (width, height))
    if kind in ("PNG", "TIFF") and mode in ("L", "RGB", "I;16"):
        assert np.array_equal(np.asarray(loaded)[..., 0], noise)


@every_time
@given(st.binary(max_size=200))
def test_any_bytes_are_an_image_or_refused(content):
    """Nothing but an ImageLoadError comes out of a damaged file."""
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\x00\x00\x00\x00WEBP", b"BM"):
        with contextlib.suppress(ImageLoadError):
            decode_image(start + content)


@every_time
@given(
    width=st.integers(MIN_SIDE, 60),
    height=st.integers(MIN_SIDE, 60),
    size=st.integers(8, 48),
    crop=st.sampled_from(["squash", "center", "squash-center"]),
)
def test_preprocessing_gives_the_network_its_size(width, height, size, crop):
    """The tensor has the network's size, and the view shows a square of the image, whatever the image's shape."""
    image = decode_image(_png(np.zeros((height, width, 3), np.uint8) + 100))
    prepared = Preprocess(size=size, crop=crop)(image)
    assert prepared.tensor.shape == (3, size, size)
    assert prepared.view.shape[2] == 3
    assert (prepared.view == 100).all()


@every_time
@given(maps)
def test_scaling_is_into_the_unit_range_and_stays_there(one):
    """The smallest value becomes 0 and the largest 1; scaling again changes nothing; flat maps become 0."""
    scaled = unit_range(torch.from_numpy(one)[None])
    flat = one.min() == one.max()
    assert scaled.min() == 0
    assert scaled.max() == (0 if flat else 1)
    assert torch.allclose(unit_range(scaled), scaled)


@every_time
@given(maps, st.integers(1, 20), st.integers(1, 20))
def test_resizing_stays_within_the_values(one, height, width):
    """Bilinear values lie between the smallest and the largest of the map."""
    large = upsample(torch.from_numpy(one)[None], (height, width))
    assert large.shape == (1, height, width)
    assert large.min() >= one.min() - 1e-4
    assert large.max() <= one.max() + 1e-4


@every_time
@given(maps, st.sampled_from([0.5, 3.0, 1024.0]))
def test_complexity_does_not_depend_on_the_scale(one, factor):
    """Gini and entropy lie in [0, 1] and are the same for a map and a multiple of it."""
    small, large = torch.from_numpy(one)[None], torch.from_numpy(one * factor)[None]
    for metric in (gini, entropy):
        value = metric(small)
        assert value.isnan().all() or 0 <= float(value) <= 1 + 1e-6
        assert torch.allclose(value, metric(large), equal_nan=True, atol=1e-6)


@every_time
@given(maps, st.integers(0, 3), st.integers(0, 3))
def test_the_pointing_game_looks_at_ranks_only(one, left, top):
    """It is the same for a map, a multiple of it and its cube."""
    size = one.shape
    objects = [Objects.from_boxes([[left, top, left + 2, top + 2]], size)]
    first, *others = (torch.from_numpy(m)[None] for m in (one, 2 * one, (one / 50) ** 3))
    value = pointing_game(first, objects, tolerance=1)
    for other in others:
        assert torch.equal(value.nan_to_num(-1), pointing_game(other, objects, tolerance=1).nan_to_num(-1))


@every_time
@given(maps, st.integers(0, 2))
def test_deletion_and_insertion_look_at_ranks_only(one, target):
    """They lie in [0, 1] and are the same for a map and an affine copy of it."""
    inputs = torch.randn(1, 3, *one.shape, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(3, 3 * one.size, generator=torch.Generator().manual_seed(1))
    first, second = torch.from_numpy(one)[None], torch.from_numpy(one * 2 + 1)[None]
    for curve in (deletion, insertion):
        a, b = (
            curve(lambda x: x.flatten(1) @ weight.T, inputs, m, torch.tensor([target]), "torchcam-20")
            for m in (first, second)
        )
        assert a.isnan().all() or 0 <= float(a) <= 1
        assert torch.allclose(a, b, equal_nan=True)


@every_time
@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.booleans())
def test_a_mask_in_run_lengths_is_read_back(mask, compressed):
    """Both forms of COCO's run lengths give the mask they were made of; an empty mask is drawn as its box."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    runs = {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}
    if compressed:
        encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        runs["counts"] = encoded["counts"].decode()
    drawn = AnnotatedObject("thing", (0, 0, 1, 1), runs).mask(mask.shape)
    expected = mask if mask.any() else np.arange(mask.size).reshape(mask.shape) == 0
    assert np.array_equal(drawn.numpy(), expected)


@every_time
@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_adjusted_p_values_keep_their_order_and_never_fall(p_values):
    """Holm's adjustment never lowers a p value, keeps the order, and passes over missing ones."""
    adjusted = holm(p_values)
    pairs = sorted((p, q) for p, q in zip(p_values, adjusted, strict=True) if p is not None)
    assert [p is None for p in p_values] == [q is None for q in adjusted]
    assert all(p <= q <= 1 for p, q in pairs)
    assert [q for _, q in pairs] == sorted(q for _, q in pairs)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
