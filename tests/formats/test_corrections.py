"""Corrections of every format version are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xai_abn.datasets.corrections import AVOID, LOOK, Corrections

HERE = Path(__file__).parent


@pytest.mark.parametrize(("version", "on"), [(1, None), (2, "class-map")])
def test_every_version_is_read(gap_net, version, on):
    """Both marks of an image, with all that was recorded."""
    corrections = Corrections(HERE / f"corrections-v{version}")
    corrections.check(gap_net)
    look, avoid = corrections
    assert (look.kind, avoid.kind) == (LOOK, AVOID)
    expected = np.zeros((24, 32), bool)
    expected[4:12, 6:20] = True
    assert np.array_equal(look.mask, expected)
    assert np.array_equal(avoid.mask, np.roll(expected, 10, axis=0))
    for one in (look, avoid):
        assert (one.label, one.target, one.model, one.classes, one.on) == ("dog", 1, "gap-net", 5, on)
        assert (one.name, one.size, one.time[:3]) == ("Ärger.png", (24, 32), "202")
        assert one.image_digest == "118790b44a041a180171ae7b5074e8d3"
    assert look.load().image.size == (32, 24)
