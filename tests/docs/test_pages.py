"""Every Python block of README and docs runs by itself, with random weights in place of those that are downloaded."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torchvision
import transformers
from PIL import Image
from skimage import data
from typer.testing import CliRunner

import xai_abn
from xai_abn import benchmark, datasets, integrations
from xai_abn.cli.commands import VERBOSE
from xai_abn.cli.main import app
from xai_abn.datasets import READERS
from xai_abn.explainers.base import EXPLAINERS
from xai_abn.metrics.base import METRICS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return the text of each block of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    if page.parent.name != "tutorials"  # which run from beginning to end
    for number, code in enumerate(blocks(page, "python"))
]
#: Detectors and networks for segmentation would load a trained backbone.
BOTH = {"weights": None, "weights_backbone": None}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with images and, under their names on the hub, small networks of transformers."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "images").mkdir()
    for name, image in {"dog": data.chelsea(), "street": data.coffee(), "images/a": data.astronaut()}.items():
        Image.fromarray(np.asarray(image)).save(folder / f"{name}.{'png' if '/' in name else 'jpg'}")
    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, image_size=64))
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    for part in (classifier, processor):
        part.save_pretrained(folder / "google/vit-base-patch16-224")
    video = transformers.VideoMAEConfig(image_size=64, num_frames=4, **SMALL)
    hub = folder / "MCG-NJU/videomae-base-finetuned-kinetics"
    transformers.VideoMAEForVideoClassification(video).save_pretrained(hub)
    frames = [Image.fromarray(np.roll(data.chelsea(), 40 * k, axis=1)) for k in range(8)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    kind = pa.fixed_shape_tensor(pa.float32(), (14, 14))
    maps = pa.ExtensionArray.from_storage(kind, pa.array([[0.5] * 196], pa.list_(pa.float32(), 196)))
    (folder / "maps.parquet").mkdir()
    pq.write_table(
        pa.table({"label": ["cat"], "abn_map": maps, "error": pa.array([None], pa.string())}),
        folder / "maps.parquet/part-00000.parquet",
    )
    from models.test_zero_shot import clip

    for part in clip():
        part.save_pretrained(folder / "openai/clip-vit-base-patch32")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of that folder, in which the block runs."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


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


@pytest.fixture
def registries():
    """Forget methods, metrics and readers that a block registers."""
    tables = (EXPLAINERS, METRICS, READERS)
    known = [set(table.names()) for table in tables]
    yield
    for table, names in zip(tables, known, strict=True):
        for extra in set(table.names()) - names:
            table.pop(extra)


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_runs(code, place, random_weights, registries):
    """As it stands on its page, but for a distillation of two steps."""
    code = code.replace("steps=1000", "steps=2, batch_size=1, mosaics=0, workers=0")
    exec(compile(code, "block", "exec"), {"__name__": "docs"})


TUTORIALS = sorted(set((ROOT / "docs/tutorials").glob("*.md")) - {ROOT / "docs/tutorials/first-image.md"})


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_beginning_to_end(page, tmp_path, monkeypatch):
    """Every block and every command of xai-abn in their order, in one folder; training and benchmark are shorter.

    The first one runs as a notebook, see test_notebooks.py.
    """
    monkeypatch.chdir(tmp_path)
    for language, block in re.findall(r"^```(python|bash)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if language == "python":
            code = re.sub(r'"train": \d+', '"train": 60', block)
            exec(compile(code, page.name, "exec"), {"__name__": "docs"})
            continue
        for line in re.findall(r"^xai-abn (?!app)(.*)$", block, re.MULTILINE):
            line = re.sub(r"--epochs \d+ --batch-size \d+", "--epochs 1 --batch-size 27 --quiet", line)
            line = re.sub(r"^benchmark run", "benchmark run --limit 2", line)
            arguments = shlex.split(line, comments=True)
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, (line, result.output, result.exception)


def test_the_commands_have_real_options():
    """Every xai-abn command shown on a page exists and uses options that its --help names."""
    commands = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            commands += re.findall(r"xai-abn (benchmark \w+|[a-z]+)(.*)$", block, re.MULTILINE)
    assert len(commands) > 50
    shown = {}
    for command, rest in commands:
        if command not in shown:
            result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "250"})
            assert result.exit_code == 0, command
            shown[command] = f"{result.stdout} {VERBOSE}"  # which every command takes
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest.split("#")[0].split("&&")[0]):
            assert option in shown[command], f"{command} has no {option}"


def test_the_service_answers_and_refuses(place):
    """An image gives a PNG with its answer; a file that is no image gives one line."""
    from fastapi.testclient import TestClient

    (code,) = blocks(ROOT / "docs/how-to/serving.md", "python")
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


def test_every_how_to_page_is_listed():
    """In the table of their first page."""
    listed = (ROOT / "docs/how-to/README.md").read_text()
    for page in (ROOT / "docs/how-to").glob("*.md"):
        assert page.stem == "README" or f"({page.name})" in listed, page.name


def test_every_method_is_in_the_gallery():
    """With its maps, or with a command that draws them; each name leads to an entry of the reference."""
    page = (ROOT / "docs/gallery.md").read_text()
    linked = dict(re.findall(r"\[`(\S+)`\]\(reference/api/methods\.md#(\S+)\)", page))
    assert linked.keys() == set(EXPLAINERS.names())
    reference = (ROOT / "docs/reference/api/methods.md").read_text()
    for name, anchor in linked.items():
        assert f"::: {anchor}\n" in reference
        assert getattr(importlib.import_module(anchor.rpartition(".")[0]), anchor.rpartition(".")[2]).name == name
        assert f"(images/gallery/{name}.webp)" in page or f"--method {name}\n" in page


def test_every_public_name_has_an_entry():
    """In the reference of the Python interface, and no entry is of something that is gone."""
    listed = set()
    for page in (ROOT / "docs/reference/api").glob("*.md"):
        for entry in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE):
            module, _, name = entry.rpartition(".")
            listed.add(id(getattr(importlib.import_module(module), name)))
    for package in (xai_abn, xai_abn.explainers, xai_abn.metrics, xai_abn.training, benchmark, datasets, integrations):
        for name in package.__all__:
            found = getattr(package, name)
            assert id(found) in listed or name in ("READERS", "Curve"), f"{package.__name__}.{name}"


def test_the_errors_listed_by_their_text_are_raised():
    """The text is in a message of the package."""
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/reference/errors.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    source = "".join(path.read_text() for path in (ROOT / "xai_abn").rglob("*.py"))
    for text in rows:
        assert text in source, text


def test_lists_made_from_the_code_are_complete():
    """The site's lists of commands, metrics and options have them all."""
    hooks = runpy.run_path(str(ROOT / "docs/site_hooks.py"))["LISTS"]
    commands = hooks["commands"]()
    for name in ("explain", "benchmark run", "train", "app"):
        assert f"## `xai-abn {name}`" in commands
    assert "`--method`, `-M`" in commands
    assert all(f"`{METRICS[name].full_name}`" in hooks["metrics"]() for name in METRICS.names())
    assert "| `rise` | `masks` | 2000 |" in hooks["options"]()
    for page in PAGES:
        assert set(re.findall(r"^<!-- made from the code: (\w+) -->$", page.read_text(), re.MULTILINE)) <= hooks.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Each link to a file of the repository."""
    for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link
