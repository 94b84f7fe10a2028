"""Every Python block of docs/how-to runs by itself, with random weights in place of those that are downloaded."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torchvision
import transformers
from PIL import Image
from skimage import data

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
#: Detectors and networks for segmentation would load a trained backbone.
BOTH = {"weights": None, "weights_backbone": None}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images and, under their names on the hub, small networks of transformers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name, image in {"dog": data.chelsea(), "street": data.coffee(), "images/a": data.astronaut()}.items():
        Image.fromarray(np.asarray(image)).save(f"{name}.jpg")
    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, image_size=64))
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    for part in (classifier, processor):
        part.save_pretrained("google/vit-base-patch16-224")
    video = transformers.VideoMAEConfig(image_size=64, num_frames=4, **SMALL)
    transformers.VideoMAEForVideoClassification(video).save_pretrained("MCG-NJU/videomae-base-finetuned-kinetics")
    frames = [Image.fromarray(np.roll(data.chelsea(), 40 * k, axis=1)) for k in range(8)]
    frames[0].save("clip.gif", save_all=True, append_images=frames[1:])
    from models.test_zero_shot import clip

    for part in clip():
        part.save_pretrained("openai/clip-vit-base-patch32")
    return tmp_path


@pytest.fixture
def random_weights(monkeypatch):
    """Let timm, torchvision and open_clip give random weights where trained ones would be downloaded."""

    def of_enum(weights, *_, **__):
        names = torchvision.models.list_models()
        name = next(n for n in names if weights in torchvision.models.get_model_weights(n))
        without = {"weights": None} if "." not in type(weights).__module__.removeprefix("torchvision.models.") else BOTH
        return torchvision.models.get_model(name, **without).state_dict()

    make, make_clip = timm.create_model, open_clip.create_model_and_transforms
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: make(name, **options))
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", of_enum)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda name, pretrained: make_clip(name))


@pytest.mark.parametrize("code", BLOCKS)
def test_a_script_runs(code, place, random_weights):
    """As it stands on its page."""
    exec(compile(code, "block", "exec"), {"__name__": "docs"})


def test_the_service_answers_and_refuses(place):
    """An image gives a PNG with its answer; a file that is no image gives one line."""
    from fastapi.testclient import TestClient

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/serving.md").read_text(), re.DOTALL)
    space = {"__name__": "service"}
    exec(compile(code, "service.py", "exec"), space)
    client = TestClient(space["app"])
    good = client.post("/explain?method=cam", files={"image": Path("dog.jpg").read_bytes()})
    assert good.status_code == 200
    assert good.content.startswith(b"\x89PNG")
    assert good.headers["x-answer"]
    for question, image in [("/explain", b"no image"), ("/explain?target=nothing", Path("dog.jpg").read_bytes())]:
        bad = client.post(question, files={"image": image})
        assert bad.status_code == 422
        assert "\n" not in bad.json()["detail"]


def test_every_page_is_listed():
    """In the table of the first page, and its links lead somewhere."""
    listed = (ROOT / "docs/how-to/README.md").read_text()
    assert all(f"({page.name})" in listed for page in PAGES if page.stem != "README")
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
