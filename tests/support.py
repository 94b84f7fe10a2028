"""What several test modules share: the smallest networks, made-up data, and the command line as a function."""

from __future__ import annotations

import json
import re

import numpy as np
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from xai_abn.cli.main import app
from xai_abn.errors import ImageLoadError, XaiAbnError

runner = CliRunner()

#: What an error tells its reader to do, or what it expects.
ADVICE = re.compile(
    r"\b(applies|ask|change|check|choose|convert|did you mean|expected|give|has classes|known|leave|load|must|name"
    r"|needs?|rename|run|say|switch|try|use|wrap)\b",
    re.IGNORECASE,
)


def check_error(error):
    """A message is one line that says what to do or what was expected; of a file, what is wrong with it."""
    text = str(error)
    assert text
    assert text == error.line
    assert len(text) < 600
    assert isinstance(error, ImageLoadError) or ADVICE.search(text), text


class GapNet(nn.Module):
    """Two convolutions, GAP and one linear layer: the smallest network that CAM describes."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(inplace=True)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.features(x)).flatten(1))


def probability(predict, image, target):
    """Softmax probability of one image (C, H, W)."""
    with torch.no_grad():
        return float(predict(image[None]).double().softmax(dim=1)[0, target])


def make_images(folder, number=8):
    (folder / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(number):
        pixels = draw.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 60, "height": 40})
        for category, box in [(0, [5, 5, 20, 20]), (1, [30, 10, 25, 25])][: 1 + i % 2]:
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": category, "bbox": box, "iscrowd": 0}
            )
    names = [{"id": i, "name": n} for i, n in enumerate(["cat", "dog"])]
    content = {"images": images, "annotations": annotations, "categories": names}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def call(*arguments):
    """Run the command as main() does: a mistake is one line on stderr and its exit code."""
    result = runner.invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, XaiAbnError):
        return result.exception.exit_code, result.stdout, result.stderr + f"xai-abn: {result.exception.line}\n"
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def touch(folder, *names):
    """Make empty files, and the folders that they lie in."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
