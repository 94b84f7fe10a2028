"""A picture's superpixels: regions of similar colour."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError


def superpixels(picture: Tensor, number: int) -> Tensor:
    """Return about ``number`` regions of a picture, the same ones each time.

    SLIC without parameters (SLICO, which weighs colour against distance by each region's own contrast, so that noise
    too is cut into regions), on the picture scaled to [0, 1] by its own smallest and largest value. Not random.

    Args:
        picture: (1, 3, H, W), normalised or not.
        number: how many regions to aim at.

    Returns:
        (1, 3, H, W) long, numbers of regions from 0 without gaps, equal in all channels.

    Raises:
        InvalidInputError: there are fewer than two regions.

    Source: Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", TPAMI 2012.
    """
    from skimage.segmentation import slic

    pixels = picture[0].detach().float().cpu()
    span = (pixels.amax() - pixels.amin()).clamp_min(torch.finfo(torch.float32).tiny)
    scaled = ((pixels - pixels.amin()) / span).permute(1, 2, 0).double().numpy()
    regions = torch.from_numpy(slic(scaled, n_segments=number, slic_zero=True, start_label=0)).long()
    found, regions = regions.unique(return_inverse=True)
    if len(found) < 2:
        raise InvalidInputError(f"a picture of {tuple(pixels.shape[1:])} gave one superpixel; ask for more segments")
    return regions.to(picture.device).expand(1, picture.shape[1], -1, -1)
