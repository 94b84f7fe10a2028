"""Figures of training runs."""

import json

import numpy as np
import torch
from PIL import Image

from xai_abn.images.preprocess import Preprocess
from xai_abn.training.figures import draw_curves, draw_maps


def test_answers_are_green_if_right_and_red_if_wrong(tmp_path):
    """Each image has its answer above it, and its map below."""
    draw_maps(
        torch.zeros(2, 3, 48, 48),
        torch.rand(2, 1, 4, 4),
        Preprocess(size=48),
        tmp_path / "maps.png",
        "Epoch 3",
        [("cat", True), ("dog, not cat", False)],
    )
    page = np.asarray(Image.open(tmp_path / "maps.png")).astype(int)
    assert page.shape == (20 + 24 + 20 + 2 * 108 + 12, 2 * 108 + 12, 3)
    right, wrong = page[44:64, 12:108].reshape(-1, 3), page[44:64, 120:216].reshape(-1, 3)
    assert (right[:, 1] - right[:, 0]).max() > 50
    assert (wrong[:, 0] - wrong[:, 1]).max() > 50
    assert page[64:160, 12:108].std() < page[172:268, 12:108].std()  # the image has one color, its map has several


def test_curves_of_one_unit_share_a_panel(tmp_path):
    """Losses, accuracies and the mean of the map have a panel each; what is not in the log has none."""
    widths = []
    for name in ("perception", "accuracy", "area"):
        lines = [
            {"kind": "epoch", "epoch": e, "perception": 40.0 if e == 1 else 0.5, "accuracy": 0.5, "area": 0.3}
            for e in (1, 2, 3)
        ]
        kept = ("kind", "epoch", "perception", "accuracy", "area")[: 3 + len(widths)]
        (tmp_path / "log.jsonl").write_text("".join(json.dumps({k: line[k] for k in kept}) + "\n" for line in lines))
        draw_curves(tmp_path / "log.jsonl", tmp_path / f"{name}.png")
        widths.append(Image.open(tmp_path / f"{name}.png").width)
    assert widths == [572, 1144, 1716]
