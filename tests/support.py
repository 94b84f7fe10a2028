"""What several test modules share: the smallest networks, made-up data, and the command line as a function."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
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


def released_names(network: nn.Module, family: str) -> dict[str, torch.Tensor]:
    """Return a network's weights under the names the released code would have given them."""
    found = {}
    for name, value in network.state_dict().items():
        if name.startswith("mechanism."):
            continue
        _part, _, rest = name.partition(".")
        if rest.startswith("stage."):
            rest = "att_" + rest.removeprefix("stage.")
        found[f"module.{_released(rest, family)}"] = value
    return found


def _released(name: str, family: str) -> str:
    if family == "wrn":
        return re.sub(r"^((?:att_)?block\d)\.(\d)", r"\1.layer.\2", name)
    if family != "resnext":
        return name
    block = {"conv1": "conv_reduce", "bn1": "bn_reduce", "conv2": "conv_conv", "bn2": "bn", "conv3": "conv_expand"}
    block |= {"bn3": "bn_expand", "downsample.0": "shortcut.shortcut_conv", "downsample.1": "shortcut.shortcut_bn"}
    match = re.match(r"(att_)?layer(\d)\.(\d)\.(conv\d|bn\d|downsample\.\d)\.(.+)", name)
    if match:
        stage = "stage_att" if match[1] else f"stage_{match[2]}"
        return f"{stage}.{stage}_bottleneck_{match[3]}.{block[match[4]]}.{match[5]}"
    return re.sub(r"^conv1\.", "conv_1_3x3.", re.sub(r"^bn1\.", "bn_1.", re.sub(r"^fc\.", "classifier.", name)))


def open_browser():
    """A headless Chromium driven by the chromedriver beside it; nothing is downloaded."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install selenium)")
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))
