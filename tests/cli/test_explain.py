"""The command line: one clear line for each mistake, nothing lost, nothing overwritten."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from support import call
from typer.testing import CliRunner

import xai_abn
from xai_abn.datasets import read_dataset
from xai_abn.errors import UnknownNameError
from xai_abn.explanation import sheet
from xai_abn.images import load_image
from xai_abn.models import zoo

runner = CliRunner()


@pytest.fixture(autouse=True)
def small_model(gap_net, monkeypatch, tmp_path):
    """Let the command use the small model, under the name ``small``, in a folder of its own."""
    monkeypatch.setitem(zoo.models, "small", lambda: gap_net)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def explain(*arguments):
    return call("explain", *arguments, "--model", "small")


def explain_in_python(image, methods=("cam", "grad-cam"), target="dog"):
    return xai_abn.explain(zoo.models["small"](), image, methods, target)[0]


def made(folder):
    """Names of the files that show something."""
    return {path.name for path in folder.iterdir()} - {"records.jsonl"}


def test_a_image_gives_a_table_and_a_image(image_file, tmp_path):
    """Label, probability, method, layer, file and time are printed; the image is there."""
    code, out, _ = explain(image_file, "--method", "grad-cam", "--target", "kite")
    assert code == 0
    for text in ("label", "kite", "%", "grad-cam", "features", "explanations/image.grad-cam.png", "ms"):
        assert text in out
    with Image.open(tmp_path / "explanations/image.grad-cam.png") as image:
        assert json.loads(image.info["xai-abn"])[0]["label"] == "kite"


def test_quiet_prints_errors_alone(image_file, bad_files, tmp_path):
    """No table; the files are there, notes and errors too."""
    code, out, err = explain(image_file, "--method", "cam,center", "--target", "kite", "--quiet")
    assert (code, out) == (0, "")
    assert "the same for every target" in err
    assert "image.cam.png" in made(tmp_path / "explanations")
    code, out, err = explain(bad_files, "-q")
    assert (code, out) == (1, "")
    assert "images failed" in err


def test_a_target_that_changes_nothing_is_noted(image_file):
    """Where the map is the same for every class."""
    _, _, err = explain(image_file, "--method", "cam,eigen-cam,sobel", "--target", "kite")
    assert "note: eigen-cam, sobel: the map is the same for every target" in err
    assert "same for every" not in explain(image_file, "--method", "eigen-cam")[2]


def test_several_methods_give_a_sheet_and_maps(image_file, tmp_path):
    """Commas and repetition both work; --save-maps saves the raw map that numpy reads."""
    code, *_ = explain(image_file, "-M", "cam,grad-cam", "--save-maps", "-o", "out")
    assert code == 0
    names = {"image.cam.png", "image.cam.npy", "image.grad-cam.png", "image.grad-cam.npy", "image.sheet.png"}
    assert made(tmp_path / "out") == names
    assert np.load(tmp_path / "out/image.cam.npy").shape == (8, 8)


def test_json_is_complete(image_file):
    """--json prints every record with its files, and the failures."""
    code, out, _ = explain(image_file, "missing.jpg", "--json")
    answer = json.loads(out)
    assert code == 1
    assert answer["explanations"][0]["method"] == "grad-cam"
    assert answer["explanations"][0]["files"] == ["explanations/image.grad-cam.png"]
    assert answer["failed"][0]["source"] == "missing.jpg"


@pytest.fixture
def bad_files(tmp_path, image):
    """One file of each broken kind, in a folder."""
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no image at all")
    Image.fromarray(image).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:700])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("1", (20_000, 50)).save(folder / "wide.png")
    return folder


def test_boxes_and_masks_are_those_of_the_record(image_file, tmp_path):
    """In the records and as images of the size of the image; a flat map has neither."""
    code, out, _ = explain(
        image_file, "--method", "grad-cam,uniform", "--boxes", "0.4", "--masks", "0.5", "--json", "--format", "jpg"
    )
    assert code == 0
    first, second = json.loads(out)["explanations"]
    record = xai_abn.explain(zoo.load_model("small"), image_file, "grad-cam")["grad-cam"]
    assert first["boxes"] == [list(box) for box in record.boxes(0.4)]
    assert (second["flaw"], second["boxes"]) == ("flat", [])
    (mask,) = (name for name in first["files"] if name.endswith(".mask.png"))
    assert not any(name.endswith(".mask.png") for name in second["files"])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / mask)) > 0, record.mask(0.5))
    assert Image.open(tmp_path / mask).size == Image.open(image_file).size
    lines = [json.loads(line) for line in (tmp_path / "explanations/records.jsonl").read_text().splitlines()]
    assert lines[0]["explanations"][0]["boxes"] == first["boxes"]
    for share in ("0", "1.5"):
        code, _, err = explain(image_file, "--boxes", share)
        assert code == 2
        assert "--boxes must be above 0 and at most 1" in err


def test_coco_annotations_cover_the_whole_run(image, tmp_path):
    """Those of images done before an interruption, too; paths are seen from the folder of the file."""
    (tmp_path / "photos").mkdir()
    for number in range(2):
        Image.fromarray(np.rot90(image, number)).save(tmp_path / "photos" / f"{number}.png")
    asked = ("--method", "cam,grad-cam", "--target", "kite", "--coco", "0.5")
    assert explain("photos", *asked)[0] == 0
    whole = (tmp_path / "explanations/annotations.json").read_text()
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(str(tmp_path / "explanations/annotations.json"))
    assert [i["file_name"] for i in found.imgs.values()] == ["../photos/0.png", "../photos/1.png"]
    record = explain_in_python("photos/1.png", target="kite")["grad-cam"]
    parts = [a for a in found.loadAnns(found.getAnnIds(imgIds=[2])) if a["method"] == "grad-cam"]
    assert np.array_equal(sum(found.annToMask(a) for a in parts), record.mask(0.5))
    assert parts[0]["score"] == pytest.approx(record.probability)
    assert all(Path(s.source).is_file() for s in read_dataset("coco:explanations/annotations.json").splits["train"])
    lines = (tmp_path / "explanations/records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "explanations/records.jsonl").write_text(lines[0])
    (tmp_path / "explanations/annotations.json").unlink()
    code, _, err = explain("photos", *asked, "--resume")
    assert (code, "1 of 2 images are done" in err) == (0, True)
    assert (tmp_path / "explanations/annotations.json").read_text() == whole
    assert "1 of 2" not in explain("photos", *asked[:-1], "0.6", "--resume")[2]


def test_annotations_of_others_are_not_replaced(image_file, tmp_path):
    """Before anything is computed; our own are."""
    (tmp_path / "explanations").mkdir()
    other = tmp_path / "explanations/annotations.json"
    other.write_text('{"info": {"description": "COCO 2017"}}')
    code, _, err = explain(image_file, "--coco", "0.5")
    assert (code, "exists and was not created by xai-abn" in err) == (1, True)
    assert made(tmp_path / "explanations") == {"annotations.json"}
    assert explain(image_file, "--coco", "0.5", "--overwrite")[0] == 0
    assert explain(image_file, "--coco", "0.7")[0] == 0


def test_a_map_against_its_target_has_no_parts(gap_net, image_file, tmp_path):
    """It is drawn; there is no box, mask or annotation, and no error."""
    with torch.no_grad():
        gap_net.module.fc.weight[1].abs_().neg_()
    code, out, _ = explain(
        image_file, "--method", "cam", "--target", "dog", "--boxes", "0.5", "--masks", "0.5", "--coco", "0.5", "--json"
    )
    (record,) = json.loads(out)["explanations"]
    assert (code, record["boxes"], record["annotations"]) == (0, [], [])
    assert record["map_max"] <= 0
    assert made(tmp_path / "explanations") == {"image.cam.png", "annotations.json"}


def test_opacity_and_contour_are_those_of_python(image_file, tmp_path):
    """The same pixels; other values are drawn again by --resume."""
    asked = ("--method", "cam", "--target", "dog", "--sheet")
    assert explain(image_file, *asked, "--opacity", "0.4", "--contour", "0.7")[0] == 0
    record = explain_in_python(image_file, "cam")["cam"]
    with Image.open(tmp_path / "explanations/image.cam.png") as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(record.overlay(opacity=0.4, contour=0.7)))
    with Image.open(tmp_path / "explanations/image.sheet.png") as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(sheet([record], opacity=0.4, contour=0.7)))
    assert "are done" not in explain(image_file, *asked, "--contour", "0.7", "--resume")[2]


@pytest.mark.parametrize(
    ("option", "value", "range_"),
    [("--opacity", "1.1", "from 0 to 1"), ("--contour", "0", "above 0"), ("--coco", "-1", "above 0")],
)
def test_shares_out_of_range_are_refused(image_file, option, value, range_):
    """With the option and what it takes."""
    code, _, err = explain(image_file, f"{option}={value}")
    assert code != 0
    assert f"{option} must be {range_}" in err


def test_the_most_probable_classes_are_in_the_record(image_file):
    """At most five, with their probabilities; none of a score."""
    (record,) = json.loads(explain(image_file, "--json")[1])["explanations"]
    model = zoo.load_model("small")
    found = xai_abn.explain(model, image_file, "grad-cam")["grad-cam"]
    assert record["top"] == [{"label": label, "probability": p} for label, p in found.top]
    assert found.top[0] == (found.predicted_label, pytest.approx(found.probability))
    values = [p for _, p in found.top]
    assert values == sorted(values, reverse=True)
    assert sum(values) <= 1 + 1e-6
    assert xai_abn.explain(model, image_file, "grad-cam", lambda output: output[:, 0])["grad-cam"].top == ()


def test_each_bad_file_is_one_line_and_exit_1(bad_files):
    """Alone, a broken file prints exactly one line that begins with the program and names the file."""
    for path in sorted(bad_files.iterdir()):
        code, out, err = explain(path)
        assert code == 1
        assert out == ""
        assert err.startswith(f"xai-abn: {path}: ")
        assert len(err.strip().splitlines()) == 1


def test_the_rest_of_a_batch_still_runs(bad_files, image, tmp_path):
    """Good images among bad ones are explained; the failures are counted and the exit code is 1."""
    for name in ("a.png", "z.png"):
        Image.fromarray(image).save(bad_files / name)
    code, out, err = explain(bad_files, "missing.jpg")
    assert code == 1
    assert out.count("grad-cam.png") == 2
    assert "6 of 8 images failed" in err
    assert len(err.strip().splitlines()) == 7
    assert made(tmp_path / "explanations") == {"a.grad-cam.png", "z.grad-cam.png"}


def test_accepted_oddities_are_noted(tmp_path):
    """An animation is explained by its first frame, and a note says so."""
    frames = [Image.effect_noise((32, 32), 90).convert("RGB") for _ in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    code, _, err = explain("moving.gif")
    assert code == 0
    assert "note: moving.gif: first of 3 frames" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "grad-cm"], "did you mean 'grad-cam'"),
        (["--method", "abn"], "needs an Attention Branch Network"),
        (["--target", "bycicle"], "did you mean 'bicycle'"),
        (["--target", "99"], "classes 0 to 4"),
        (["--layer", "featurs"], "did you mean 'features"),
        (["--layer", "foo"], "See 'xai-abn list layers'."),
        (["--colormap", "virdis"], "did you mean 'viridis'"),
        (["--weights", "random"], "has its own weights"),
        (["--device", "nonsense"], "cannot use device"),
    ],
)
def test_wrong_names_are_one_line_with_the_nearest(image_file, arguments, message):
    """Every unknown name is answered with one line, exit code 2, and nothing is written."""
    code, out, err = explain(image_file, *arguments)
    assert (code, out) == (1 if "abn" in arguments else 2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not os.path.exists("explanations") or not os.listdir("explanations")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("abn-lite", "did you mean 'abn-lite0'"),
        ("timm:resnet511", "did you mean 'resnet"),
        ("torchvision:resnet19", "did you mean 'resnet1"),
        ("missing.safetensors", "not a readable safetensors checkpoint"),
    ],
)
def test_wrong_models_are_one_line(image_file, model, message):
    """An unknown model or missing checkpoint is answered with one line."""
    code, out, err = call("explain", image_file, "--model", model)
    assert (code, out) == (1 if model.endswith(".safetensors") else 2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_usage_errors_exit_2(image_file):
    """A missing argument, an unknown option or format, or one of two values for one option is a usage error."""
    assert call("explain")[0] == 2
    code, _, err = call("explain", image_file, "--layer", "a", "-l", "b")
    assert code == 2
    assert "--layer is given 2 times; give it once" in err
    assert call("explain", image_file, "--colour", "red")[0] == 2
    assert call("explain", image_file, "--map", "csv")[0] == 2


def test_nan_scores_fail_only_their_image(gap_net, image, tmp_path, monkeypatch):
    """An image whose scores are NaN fails by name; its neighbours in the batch are explained."""
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(image if name != "b.png" else np.full_like(image, 255)).save(tmp_path / name)
    original = gap_net.module.forward

    def fragile(x):
        scores = original(x)
        return torch.where((x.amin((1, 2, 3)) > 1)[:, None], torch.nan, scores)

    monkeypatch.setattr(gap_net.module, "forward", fragile)
    code, out, err = explain("a.png", "b.png", "c.png")
    assert code == 1
    assert out.count("grad-cam.png") == 2
    assert "xai-abn: b.png: gap-net outputs NaN" in err
    assert "1 of 3 images failed" in err


def test_own_files_are_replaced_foreign_ones_are_not(image_file, tmp_path):
    """A second run replaces its own images and maps; a file of the user's stays unless --overwrite is given."""
    out = tmp_path / "explanations"
    assert explain(image_file, "--save-maps")[0] == 0
    assert explain(image_file, "--save-maps")[0] == 0
    for name in ("image.grad-cam.png", "image.grad-cam.npy"):
        (out / name).write_bytes(b"mine")
        code, _, err = explain(image_file, "--save-maps")
        assert code == 1
        assert "was not created by xai-abn" in err
        assert (out / name).read_bytes() == b"mine"
        assert explain(image_file, "--save-maps", "--overwrite")[0] == 0
        assert (out / name).read_bytes() != b"mine"
    assert not [p for p in out.iterdir() if p.suffix == ".part"]


def test_images_of_one_name_do_not_replace_each_other(tmp_path, image):
    """a/x.png and b/x.png get files of their own."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "x.png")
    assert explain("a", "b")[0] == 0
    assert made(tmp_path / "explanations") == {"x.grad-cam.png", "x-2.grad-cam.png"}


def test_files_of_images_with_long_names_have_shorter_ones(tmp_path, image):
    """Names that the file system would not take are shortened and stay apart, also in a second run."""
    names = ["\N{CJK UNIFIED IDEOGRAPH-4F11}" * 83 + f"{end}.png" for end in "ab"]
    for name in names:
        Image.fromarray(image).save(tmp_path / name)
    for _ in range(2):
        assert explain(*names, "--method", "grad-cam,grad-cam:layer=features.0", "--save-maps")[0] == 0
        files = made(tmp_path / "explanations")
        assert len(files) == 2 * 5
        assert all("~" in name and len(os.fsencode(name)) <= 250 for name in files)


def test_an_unwritable_output_is_one_line(image_file, tmp_path):
    """An output path that is a file is refused before any work."""
    (tmp_path / "taken").write_text("a file")
    code, out, err = explain(image_file, "--output", "taken")
    assert (code, out) == (1, "")
    assert "cannot write to output folder taken" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_output_is_one_line(image_file, tmp_path):
    """A folder without write permission is refused before any work."""
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = explain(image_file, "--output", "locked/out")
    assert code == 1
    assert "cannot write" in err


def test_a_flat_map_is_a_warning_not_a_image_of_nothing(gap_net, image_file):
    """An all-zero Grad-CAM is said to be flat."""
    with torch.no_grad():
        gap_net.module.fc.weight.zero_()
    code, _, err = explain(image_file)
    assert code == 0
    assert "warning" in err
    assert "flat" in err


def test_list_shows_methods_models_layers_and_labels(tmp_path):
    """Each list holds what can be asked for; the target layer is marked; --search narrows, and says if nothing fits."""
    methods = call("list", "methods")[1]
    assert all(name in methods for name in xai_abn.explainers.names())
    models = call("list", "models", "--search", "lite0")[1]
    assert "abn-lite0" in models
    assert "timm:tf_efficientnet_lite0" in models
    assert "resnet50" not in models
    for name, task in (("fcos_resnet50_fpn", "detection"), ("lraspp_mobilenet_v3_large", "segmentation")):
        (row,) = [line.split() for line in call("list", "models", "--search", name)[1].splitlines() if name in line]
        assert row == [f"torchvision:{name}", "torchvision,", task]
    layers = call("list", "layers", "--model", "small")[1]
    assert "target layer" in layers
    assert "features.2" in layers
    assert "tabby  281" in call("list", "labels", "--search", "tabby")[1]
    (tmp_path / "names.txt").write_text("rose\ntulip\n")
    own = ("--model", "timm:resnet18", "--weights", "random", "--labels", str(tmp_path / "names.txt"))
    assert call("list", "labels", *own)[1].split() == ["label", "index", "rose", "0", "tulip", "1"]
    assert "no label contains 'person'" in call("list", "labels", "--search", "person")[2]
    assert "give them with --labels FILE" in call("list", "labels", *own[:4], "--classes", "3")[2]


def test_outputs_are_declared(image_file, gap_net):
    """Attributes have a probability each, values have none; the plain answer is a share of a softmax."""
    logits = gap_net.module(gap_net.preprocess(load_image(image_file)).tensor[None])[0].detach()
    found = {}
    for kind in ("classes", "attributes", "values"):
        code, out, err = explain(image_file, "--target", "dog", "--json", "--outputs", kind)
        assert code == 0, err
        (record,) = json.loads(out)["explanations"]
        found[kind] = record["probability"]
    row = gap_net.labels.index("dog")
    assert found["classes"] == pytest.approx(float(logits.softmax(dim=0)[row]), rel=1e-4)
    assert found["attributes"] == pytest.approx(float(logits.sigmoid()[row]), rel=1e-4)
    assert found["values"] is None
    assert "classes, attributes" in explain(image_file, "--outputs", "logits")[2]
    with pytest.raises(UnknownNameError, match="outputs 'logits'; known: classes, attributes, values"):
        xai_abn.load_model("lite0", outputs="logits")


def test_help_version_and_methods_do_not_import_torch():
    """--help, 'explain --help', --version and 'list methods' answer without loading torch."""
    for arguments in (["--help"], ["explain", "--help"], ["list", "--help"], ["--version"], ["list", "methods", "-v"]):
        code = (
            "import sys; from xai_abn.cli.main import app\n"
            f"try: app({arguments!r})\nexcept SystemExit as e: assert not e.code\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    """An interrupted run says so on one line and keeps its exit code."""
    from xai_abn.cli import main

    def interrupted():
        raise SystemExit(main.INTERRUPTED)

    monkeypatch.setattr(main, "app", interrupted)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="130"):
        main.main()
    assert capsys.readouterr().err == "xai-abn: interrupted; the files written so far are complete\n"


def test_main_prints_one_line_and_exits_2(tmp_path):
    """The installed entry point itself turns an error into one line, in a process of its own."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from xai_abn.cli.main import main; main()",
            "explain",
            "example:cat",
            "--model",
            "nonsense",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("xai-abn: unknown model 'nonsense'")
    assert "Traceback" not in done.stderr


def in_a_process(*arguments, **options):
    """Run the command as its users do; its modules are those that it imports itself."""
    code = (
        "import sys\nfrom xai_abn.cli.main import main\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, check=False, **options
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("image.jpg", "--method", "gradcam"), 2, "did you mean 'grad-cam'"),
        (("image.jpg", "--method", "rise:masks=5,gradcam"), 2, "did you mean 'grad-cam'"),
        (("image.jpg", "--method", "all"), 2, "xai-abn list methods"),
        (("image.jpg", "--labels", "no.txt"), 2, "--labels no.txt: no such file"),
        (("image.jpg", "--weights", "no.pt"), 2, "--weights no.pt: no such file"),
        (("image.jpg", "--mean", "gray"), 2, "mean must be a number, got 'gray'"),
        (("image.jpg", "--crop", "round"), 2, "round"),
        (("imige.jpg",), 1, "imige.jpg: no such file"),
        (("https://example.com/cat.jpg",), 1, "https://example.com/cat.jpg: web addresses are not read; download"),
    ],
)
def test_typing_errors_are_found_before_torch_is_loaded(image_file, tmp_path, arguments, code, message):
    """Loading torch and a model takes seconds; a wrong file or method is said at once."""
    Image.open(image_file).save(tmp_path / "image.jpg")
    done = in_a_process("explain", *arguments)
    assert done.returncode == code
    assert message in done.stderr.decode()
    assert done.stderr.decode().endswith("\nFalse\n")


@pytest.mark.parametrize("arguments", [("--method", "gradcam"), ("--labels", "no.txt"), ("--exif", "turn")])
def test_typing_errors_of_a_benchmark_are_found_before_torch_is_loaded(arguments):
    """Too."""
    done = in_a_process("benchmark", "run", "--data", "images:.", *arguments)
    assert done.returncode == 2
    assert done.stderr.decode().endswith("\nFalse\n")


def test_the_table_of_methods_says_what_the_methods_say():
    """In this order; ``python -m xai_abn.cli.methods`` writes it."""
    from xai_abn.cli.methods import asked, shipped
    from xai_abn.explainers.base import EXPLAINERS

    own = [name for name, kind in EXPLAINERS.items() if kind.__module__.startswith("xai_abn.explainers")]
    said = asked()
    assert list(shipped().items()) == [(name, said[name]) for name in own]


def test_a_blank_after_a_comma_is_explained(image_file):
    """``--method abn, cam`` makes cam an image; the message says so."""
    code, _, err = explain(image_file, "cam", "--method", "grad-cam,")
    assert code == 1
    assert "cam: no such file; cam is a method: write --method A,B without spaces" in err


def test_standard_input_is_an_image(image_file, tmp_path):
    """``-`` and a pipe by its path are read."""
    for name, made in (("-", "stdin"), ("/dev/stdin", "stdin")):
        done = in_a_process(
            "explain", name, "-m", "lite0", "-M", "cam", "-o", "out", "--overwrite", input=image_file.read_bytes()
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / f"{made}.cam.png").is_file()
    assert b"damaged" in in_a_process("explain", "-", "-m", "lite0", input=image_file.read_bytes()[:200]).stderr


def test_without_a_model_or_method_the_masks_of_the_shipped_network_are_drawn(image, tmp_path):
    """Of its top-1 class."""
    Image.fromarray(image).save(tmp_path / "it.png")
    code, out, err = call("explain", "it.png")
    assert code == 0, err
    assert "abn-mask" in out
    assert [path.name for path in (tmp_path / "explanations").glob("*.png")] == ["it.abn-mask.png"]


def test_a_full_disk_ends_the_command_at_once(image, tmp_path, monkeypatch):
    """The images that are done are told, and no other is tried."""
    import errno

    for number in range(5):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    write, done = Path.write_bytes, []

    def fill(self, content):
        if len(done) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(self)
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    code, out, err = explain(*(f"{n}.png" for n in range(5)), "--workers", "0")  # in order
    assert code == 1
    assert out.count("grad-cam.png") == 2
    assert "No space left on device; stopped after 2 of 5 images: free some space" in err
    assert err.count("No space") == 1
    assert not list((tmp_path / "explanations").glob("*.part"))


def save_images(folder, names, image):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image + np.uint8(number)).save(folder / name)


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}


def test_a_resumed_command_skips_what_is_done(tmp_path, image):
    """The table is that of all images; what was lost, changed or failed is explained again."""
    save_images(tmp_path, ["a.png", "b.png", "c.png"], image)
    images, folder = ("a.png", "b.png", "c.png"), tmp_path / "explanations"
    _, whole, _ = explain(*images, "--json")
    before = times(folder)
    code, out, err = explain(*images, "--json", "--resume")
    assert code == 0
    assert "note: 3 of 3 images are done and are skipped" in err
    assert json.loads(out) == json.loads(whole)
    assert times(folder) == before

    (folder / "a.grad-cam.png").unlink()
    save_images(tmp_path, ["b.png"], image + np.uint8(9))
    _, out, err = explain(*images, "--json", "--resume")
    assert "note: 1 of 3 images are done" in err
    assert [r["source"] for r in json.loads(out)["explanations"]] == list(images)
    assert {name for name, time in times(folder).items() if time == before[name]} == {"c.grad-cam.png"}


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_write_what_one_after_the_other_writes(workers, tmp_path, image):
    """The same files and records in the same order, with the same failures."""
    for number in range(11):
        Image.fromarray(np.roll(np.asarray(image), 7 * number, axis=0)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "05.png").write_bytes(b"no image")
    found = []
    for folder, count in (("plain", 0), ("threads", workers)):
        code, out, err = explain("*.png", "--method", "cam,grad-cam", "--output", folder, "--workers", count, "--json")
        assert code == 1
        assert "1 of 11 images failed" in err
        records = json.loads(out)["explanations"]
        files = {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir() if path.suffix == ".png"}
        assert len(files) == 30
        assert len((tmp_path / folder / "records.jsonl").read_text().splitlines()) == 10
        for record in records:
            record.pop("seconds")
            record["files"] = [Path(file).name for file in record["files"]]
        found.append((records, files))
    assert found[0] == found[1]
    assert [record["source"] for record in found[0][0][::2]] == sorted({record["source"] for record in found[0][0]})


@pytest.mark.parametrize(
    "others", [["--target", "kite"], ["-M", "cam"], ["--colormap", "jet"], ["--save-maps"], ["--crop", "squash"]]
)
def test_other_options_are_not_resumed(image_file, others):
    """A file made with other options is not what the command asks for."""
    assert explain(image_file)[0] == 0
    assert "skipped" not in explain(image_file, "--resume", *others)[2]
    assert "1 of 1 images are done" in explain(image_file, "--resume", *others)[2]


def test_other_weights_are_not_resumed(gap_net, image_file):
    """A model is known by its weights, not by its name."""
    assert explain(image_file)[0] == 0
    with torch.no_grad():
        gap_net.module.fc.weight.mul_(2)
    assert "skipped" not in explain(image_file, "--resume")[2]


def test_names_do_not_depend_on_failures(tmp_path, image):
    """An image that is repaired later does not take the files of another."""
    save_images(tmp_path, ["a/x.png", "b/x.png"], image)
    whole = (tmp_path / "a/x.png").read_bytes()
    (tmp_path / "a/x.png").write_bytes(whole[:50])
    assert explain("a", "b")[0] == 1
    assert made(tmp_path / "explanations") == {"x-2.grad-cam.png"}
    (tmp_path / "a/x.png").write_bytes(whole)
    assert explain("a", "b", "--resume")[0] == 0
    for name, source in (("x", "a/x.png"), ("x-2", "b/x.png")):
        with Image.open(tmp_path / f"explanations/{name}.grad-cam.png") as drawn:
            assert json.loads(drawn.info["xai-abn"])[0]["source"] == source


def test_an_interrupted_command_tells_what_is_done(tmp_path, image, monkeypatch):
    """The table, and the records of the images that were saved."""
    from xai_abn.cli.output import OutputFolder

    save_images(tmp_path, ["a.png", "b.png"], image)
    save = OutputFolder.save

    def interrupted(self, source, explanations):
        if source == "b.png":
            raise KeyboardInterrupt
        return save(self, source, explanations)

    monkeypatch.setattr(OutputFolder, "save", interrupted)
    code, out, _ = explain("a.png", "b.png")
    assert code == 130
    assert "explanations/a.grad-cam.png" in out
    lines = (tmp_path / "explanations/records.jsonl").read_text().splitlines()
    assert [json.loads(line)["explanations"][0]["source"] for line in lines] == ["a.png"]


def test_the_file_of_records_survives_a_kill_and_is_no_one_elses(image_file, tmp_path):
    """An incomplete last line is left out; a file of the user's is not touched."""
    records = tmp_path / "explanations/records.jsonl"
    assert explain(image_file)[0] == 0
    line = records.read_text()
    records.write_text(line + line[: len(line) // 2])
    assert "1 of 1 images are done" in explain(image_file, "--resume")[2]
    assert records.read_text() == line
    records.write_text("mine\n")
    code, _, err = explain(image_file)
    assert code == 1
    assert "records.jsonl exists and was not created by xai-abn" in err
    assert records.read_text() == "mine\n"
    assert explain(image_file, "--overwrite")[0] == 0


def test_overlays_can_be_jpegs(image_file, tmp_path):
    """They hold the records too, are replaced and are not explained; --sheet makes a sheet of one map."""
    folder = tmp_path / "explanations"
    for _ in range(2):
        assert explain(image_file, "--format", "jpg", "--sheet")[0] == 0
        assert made(folder) == {"image.grad-cam.jpg", "image.sheet.jpg"}
    with Image.open(folder / "image.grad-cam.jpg") as drawn:
        assert drawn.format == "JPEG"
        key, _, records = drawn.info["comment"].partition(b" ")
    assert key == b"xai-abn"
    assert json.loads(records)[0]["method"] == "grad-cam"
    assert "2 drawings of xai-abn are skipped" in explain(folder, "-o", "out")[2]
    (folder / "image.grad-cam.jpg").write_bytes(image_file.read_bytes())
    assert explain(image_file, "--format", "jpg")[0] == 1


def test_records_too_long_for_a_jpeg_leave_the_mark(tmp_path):
    """A comment holds 64 KiB; the file is still known as ours."""
    from xai_abn.cli.output import _is_ours, _jpeg

    path = tmp_path / "many.jpg"
    path.write_bytes(_jpeg(Image.new("RGB", (8, 8)), "x" * 70_000))
    assert _is_ours(path)


def test_a_clip_is_explained_by_name(tmp_path):
    """Overlay of frames, map, clip and mask; the same command may replace what it made, and nothing else."""
    draw = np.random.default_rng(0)
    frames = [Image.fromarray(draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(20)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    command = ["explain", tmp_path / "clip.gif", "-m", "torchvision:r3d_18", "--weights", "random", "--size", "32"]
    command += ["-M", "saliency", "-t", "archery", "--clip", "mp4", "--masks", "0.5", "--boxes", "0.5"]
    command += ["-o", tmp_path / "out", "--json"]
    for _ in range(2):
        code, out, err = call(*command)
        assert code == 0, err
    (record,) = json.loads(out)["explanations"]
    names = ["png", "npy", "mp4", "mask.npy"]
    assert [Path(f).name for f in record["files"]] == [f"clip.saliency.{n}" for n in names]
    assert all(Path(f).is_file() for f in record["files"])
    assert record["map_shape"] == [16, 32, 32]
    assert np.load(record["files"][3]).shape == tuple(record["image_size"]) == (16, 40, 50)
    assert all(len(box) == 6 for box in record["boxes"])
    assert "16 of 20 frames" in record["notes"][0]
    Path(record["files"][2]).write_bytes(b"of another program")
    code, _, err = call(*command)
    assert code == 1
    assert "not created by xai-abn" in err


def test_a_volume_is_explained_by_a_plugged_in_model(tmp_path, monkeypatch):
    """Its map is saved as NIfTI on the grid of the file."""
    import nibabel
    from volumes import net3d, seeded_volumes

    from xai_abn.models.zoo import models

    monkeypatch.setitem(models, "net3d", net3d)
    affine = np.diag([1.0, 2, 3, 1])
    nibabel.save(nibabel.Nifti1Image(seeded_volumes(12, 16, 20).numpy(), affine), tmp_path / "scan.nii.gz")
    for _ in range(2):
        options = ["-M", "hires-cam", "-o", tmp_path / "out", "--json", "--masks", "0.5"]
        code, out, err = call("explain", tmp_path / "scan.nii.gz", "-m", "net3d", *options)
        assert code == 0, err
    (record,) = json.loads(out)["explanations"]
    names = [Path(f).name for f in record["files"]]
    assert names == [f"scan.hires-cam.{n}" for n in ("png", "npy", "nii.gz", "mask.nii.gz")]
    for file in record["files"][2:]:
        saved = nibabel.load(file)
        assert saved.shape == (12, 16, 20)
        np.testing.assert_array_equal(saved.affine, affine)
