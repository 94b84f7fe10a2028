"""The server: its answers are those of explain(), what it refuses, and that nothing saved is lost."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from serving import Serving, ask
from support import call, check_error

import xai_abn
from xai_abn.app import server as module
from xai_abn.errors import InvalidInputError, UnsupportedModelError

PLACE = {"model": "small-abn", "image": "example:cat", "target": 1}
MAPS = {"model": "small-abn", "image": "example:cat", "methods": "abn|abn-class|grad-cam"}


@pytest.fixture(scope="module")
def serving(tmp_path_factory, small_abn, small_resnet):
    folder = tmp_path_factory.mktemp("corrections")
    found = Serving([small_abn, small_resnet], folder)
    yield found
    found.stop()


def decoded(text, shape):
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(shape)


def test_maps_are_those_of_explain(serving, small_abn):
    """To the last bit, with records, for a class and for a difference."""
    questions = [
        ({}, None),
        ({"target": 3}, 3),
        ({"target": 3, "versus": 1}, xai_abn.Difference(3, versus=1)),
        ({"target": 3, "also": "1,2"}, [[3, 1, 2]]),
    ]
    for asked, target in questions:
        status, answer = serving.ask("api/explain", **MAPS, **asked)
        assert status == 200
        expected = xai_abn.explain(small_abn, "example:cat", MAPS["methods"].split("|"), target)[0]
        for shown, record in zip(answer["maps"], expected.values(), strict=True):
            assert np.array_equal(decoded(shown["values"], shown["map_shape"]), record.map)
            assert {name: shown[name] for name in record.to_dict()} == record.to_dict()
            assert shown["says"]


def test_the_python_and_the_command_that_it_shows_give_the_same(serving, abn_lite0, tmp_path):
    """The code runs, and its map is the one that was shown."""
    shipped = Serving([abn_lite0], tmp_path)
    asked = {"model": "abn-lite0", "image": "example:cat", "methods": "grad-cam", "target": 281, "versus": 285}
    _, answer = shipped.ask("api/explain", **asked)
    marks = np.zeros((2, 224, 224), np.uint8)
    marks[0, 32:96, 32:96], marks[0, 160:], marks[1, 16:80] = 1, 2, 1
    place = {"model": "abn-lite0", "image": "example:cat", "target": 281}
    shipped.ask("api/corrections", body=marks.tobytes(), **place)
    _, edited = shipped.ask("api/edit", body=marks.tobytes(), **place)
    shipped.stop()
    names = {}
    exec(answer["edit_python"], names)
    (row,) = [row for row in edited["prediction"] if row["target"] == 281]
    assert float(names["edit"].own.probabilities[281]) == row["before"]
    assert float(names["m"].probabilities[281]) == pytest.approx(row["after"], abs=0.01)
    (row,) = [row for row in edited["attention"] if row["target"] == 281]
    assert row["before"] != row["after"]
    assert float(names["class_map"].attention_probabilities[281]) == pytest.approx(row["after"], abs=0.01)
    names = {}
    exec(answer["python"], names)
    assert np.array_equal(names["record"].map, decoded(answer["maps"][0]["values"], answer["maps"][0]["map_shape"]))
    assert answer["command"] == (
        "xai-abn explain example:cat --model abn-lite0 --method grad-cam --target tabby --versus 'Egyptian cat'"
    )


def test_files_to_keep_hold_the_map_and_the_record(serving, small_abn):
    """The raw map, the record, and a drawing."""
    record = xai_abn.explain(small_abn, "example:cat", "grad-cam")["grad-cam"]
    more = {"map": 2, "opacity": 0.4}
    assert np.array_equal(np.load(io.BytesIO(serving.ask("api/file", **MAPS, **more, kind="map")[1])), record.map)
    assert b'"method": "grad-cam"' in serving.ask("api/file", **MAPS, **more, kind="record")[1]
    assert serving.ask("api/file", **MAPS, **more, kind="image")[1].startswith(b"\x89PNG")


def test_polarity_is_the_metric(serving, small_abn):
    """Of each map, on this image."""
    from xai_abn.metrics import polarity

    _, values = serving.ask("api/polarity", **MAPS)
    record = xai_abn.explain(small_abn, "example:cat", "grad-cam")["grad-cam"]
    inputs = small_abn.preprocess(xai_abn.images.load_example("cat")).tensor[None]
    with torch.no_grad():
        expected = polarity(
            lambda x: small_abn.module(x).logits,
            inputs,
            torch.tensor(record.map)[None],
            torch.tensor([record.target]),
        )
    assert values[2] == pytest.approx(float(expected), abs=1e-6)


def test_answers_to_marks_are_those_of_the_network(serving, small_abn):
    """With the map that the server says it used; without marks on its map, those of a branch are the network's own."""
    place = {"model": "small-abn", "image": "example:cat", "target": 3}
    marks = np.zeros((2, 64, 64), np.uint8)
    _, own = serving.ask("api/edit", body=marks.tobytes(), **place)
    assert all(row["before"] == row["after"] for row in own["prediction"] + own["attention"])
    assert own["attention_map"] == own["own_attention_map"]
    marks[0, 10:40, 10:40], marks[0, 48:] = 1, 2
    _, answer = serving.ask("api/edit", body=marks.tobytes(), **place)
    attention = torch.tensor(decoded(answer["attention_map"], answer["grid"]).copy())
    inputs = small_abn.preprocess(xai_abn.images.load_example("cat")).tensor[None]
    inputs = inputs.contiguous(memory_format=small_abn.memory_format)
    with torch.no_grad():
        expected = small_abn.module.eval()(inputs, attention=attention[None, None]).logits.softmax(dim=1)[0]
    for row in answer["prediction"]:
        assert row["after"] == float(expected[row["target"]])
    assert float(attention[-1].max()) == 0
    assert (answer["attention"], answer["class_map"]) == (own["attention"], own["own_class_map"])

    marks = np.ascontiguousarray(marks[::-1])  # the same on the class map that varies most
    with torch.no_grad():
        output = small_abn.module(inputs)
    varied, logits = int(output.class_maps[0].flatten(1).std(dim=1).argmax()), output.attention_logits[0]
    _, own = serving.ask("api/edit", body=bytes(2 * 64 * 64), **(place | {"target": varied}))
    _, answer = serving.ask("api/edit", body=marks.tobytes(), **(place | {"target": varied}))
    assert (answer["prediction"], answer["attention_map"]) == (own["prediction"], own["own_attention_map"])
    logits[varied] = float(decoded(answer["class_map"], answer["grid"]).mean())
    for row in answer["attention"]:
        assert row["after"] == pytest.approx(float(logits.softmax(dim=0)[row["target"]]), abs=1e-6)
    (changed,) = [row for row in answer["attention"] if row["target"] == varied]
    assert changed["before"] != changed["after"]


def test_saved_marks_come_back(serving):
    """As painted, each with its map; an empty painting takes the corrections away."""
    place = {"model": "small-abn", "image": "example:cat", "target": 5}
    marks = np.zeros((2, 64, 64), np.uint8)
    marks[0, 8:24, 8:24], marks[0, 40:, :16], marks[1, 8:24, 8:24] = 1, 2, 2
    status, saved = serving.ask("api/corrections", body=marks.tobytes(), **place)
    assert status == 200
    assert sorted((row["on"], row["kind"]) for row in saved) == [
        ("attention-map", "look here"),
        ("attention-map", "not here"),
        ("class-map", "not here"),
    ]
    assert serving.ask("api/marks", **place)[1] == marks.tobytes()
    assert serving.ask("api/corrections", body=bytes(2 * 64 * 64), **place)[1] == []


def test_marks_on_no_map_in_particular_are_shown_on_both(serving, small_abn):
    """As those of a classifier without an attention map are; saved again, they belong to each map."""
    place = {"model": "small-abn", "image": "example:cat", "target": 6}
    marks = np.zeros((64, 64), np.uint8)
    marks[8:24, 8:24] = 1
    status, saved = serving.ask("api/corrections", body=marks.tobytes(), **(place | {"model": "small-resnet"}))
    assert status == 200
    assert [row["on"] for row in saved if row["target"] == 6] == [None]
    both = serving.ask("api/marks", **place)[1]
    assert both == marks.tobytes() * 2
    _, saved = serving.ask("api/corrections", body=both, **place)
    assert sorted(row["on"] for row in saved) == ["attention-map", "class-map"]
    serving.ask("api/corrections", body=bytes(2 * 64 * 64), **place)


def test_an_upload_is_explained_like_its_file(serving, small_abn, image_file):
    """By its bytes; a lost one is asked for again."""
    status, sent = serving.ask("api/images", body=image_file.read_bytes(), name="../../a b.png")
    assert (status, sent["name"], sent["width"], sent["height"]) == (200, "a b.png", 80, 60)
    _, answer = serving.ask("api/explain", **(MAPS | {"image": sent["image"]}))
    expected = xai_abn.explain(small_abn, image_file, "grad-cam")["grad-cam"]
    assert np.array_equal(decoded(answer["maps"][2]["values"], answer["maps"][2]["map_shape"]), expected.map)
    status, lost = serving.ask("api/explain", **(MAPS | {"image": "sent:0123"}))
    assert (status, lost["unknown_image"]) == (404, True)


REFUSED = {
    "a path": ("api/view", {"model": "small-abn", "image": "/etc/passwd"}, None, 404),
    "a path of a file served as a page": ("../service.py", {}, None, 404),
    "an example that climbs": ("api/view", {"model": "small-abn", "image": "example:../x"}, None, 404),
    "an unknown model": ("api/model", {"model": "/tmp/model.pt"}, None, 400),
    "an unknown method": ("api/explain", MAPS | {"methods": "magic"}, None, 400),
    "a method with options": ("api/explain", MAPS | {"methods": "rise:masks=1000000"}, None, 400),
    "too many methods": ("api/explain", MAPS | {"methods": "|".join(["abn"] * 13)}, None, 400),
    "an unknown class": ("api/explain", MAPS | {"target": 10}, None, 400),
    "a class that is no number": ("api/explain", MAPS | {"target": "cat"}, None, 400),
    "a class compared with itself": ("api/explain", MAPS | {"target": 1, "versus": 1}, None, 400),
    "a script": ("api/images", {"name": "a.svg"}, b"<svg><script>alert(1)</script></svg>", 400),
    "an empty file": ("api/images", {"name": "a.png"}, b"", 400),
    "a cut image": ("api/images", {"name": "a.png"}, b"\x89PNG\r\n\x1a\n" + b"0" * 40, 400),
    "too few marks": ("api/edit", PLACE, b"\x01\x02", 400),
    "marks that do not exist": ("api/edit", PLACE, b"\x07" * 4096, 400),
    "marks everywhere": ("api/corrections", PLACE, b"", 400),
    "a model without a map": ("api/edit", PLACE | {"model": "small-resnet"}, bytes(4096), 400),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_one_sentence(serving, what):
    """And the server goes on."""
    path, values, body, expected = REFUSED[what]
    status, answer = serving.ask(path, body=body, **values)
    assert status == expected
    assert answer["error"]
    assert "\n" not in answer["error"]
    assert "Traceback" not in answer["error"]
    assert serving.ask("api/start")[0] == 200


def test_an_oversized_upload_is_refused(serving, monkeypatch):
    """With its size in the header or not."""
    monkeypatch.setattr(module, "MAX_UPLOAD", 1000)
    assert serving.ask("api/images", body=bytes(1001), name="a.png")[0] == 413
    parts = (bytes(600) for _ in range(3))
    assert serving.ask("api/images", body=parts, headers={"Transfer-Encoding": "chunked"}, name="a.png")[0] == 413


def test_other_sites_are_refused(serving):
    """A page elsewhere, and one whose name leads to this machine."""
    assert serving.ask("api/start", headers={"Origin": "http://evil.example"})[0] == 403
    assert serving.ask("api/start", headers={"Host": "evil.example"})[0] == 403
    assert serving.ask("api/start", headers={"Origin": serving.address})[0] == 200
    assert serving.ask("api/start", headers={"Host": "localhost:1"})[0] == 200


def test_what_cannot_be_served_is_refused(small_abn, tmp_path):
    """An address that is not this machine's, a network that segments, and one of values."""
    from xai_abn.app import run

    with pytest.raises(InvalidInputError, match="--host") as raised:
        run(small_abn, corrections=tmp_path, host="192.0.2.1")
    check_error(raised.value)

    class Segmenter(torch.nn.Module):
        def forward(self, x):
            return {"out": x[:, :, ::4, ::4]}

    small = xai_abn.Preprocess(size=32)
    values = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 32), torch.nn.Flatten())
    for network, options in ((Segmenter(), {}), (values, {"scores_only": True})):
        with pytest.raises(UnsupportedModelError, match="not a classifier with probabilities") as raised:
            run(xai_abn.wrap(network, preprocess=small, **options), corrections=tmp_path)
        check_error(raised.value)


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_a_missing_package_is_named(small_abn, tmp_path, monkeypatch, name):
    """With the command that installs it."""
    from xai_abn.app import run

    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name] or [name]:
        monkeypatch.setitem(sys.modules, loaded, None)
    with pytest.raises(UnsupportedModelError, match=r"pip install 'xai-abn\[app\]'"):
        run(small_abn, corrections=tmp_path, port=0)


def test_the_command_names_damaged_corrections(tmp_path, monkeypatch):
    """And serves the page all the same, of the model that was asked for."""
    served = []
    monkeypatch.setattr(module, "serve", lambda service, host, port, started: served.append((service, host)))
    (tmp_path / "broken.json").write_text("{")
    status, _, errors = call("app", "--model", "abn-cifar100", "--no-browser", "--corrections", tmp_path)
    assert status == 0
    assert "broken.json: expected JSON" in errors
    ((service, host),) = served
    assert (service.start()["models"][0], host) == ("abn-cifar100", "127.0.0.1")
    assert call("app", "--data", "coco:nowhere", "--no-browser")[0] == 1


def test_a_killed_server_loses_no_correction_that_it_said_is_saved(tmp_path):
    """The command, killed without warning as soon as it has answered."""
    command = [sys.executable, "-m", "xai_abn", "app", "--model", "abn-cifar100", "--no-browser", "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--corrections", str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        address = process.stdout.readline().split("/  ")[0]
        marks = np.zeros((2, 32, 32), np.uint8)
        marks[0, 4:12, 4:12] = 1
        place = {"model": "abn-cifar100", "image": "example:cat", "target": 7}
        deadline = time.monotonic() + 20
        while True:
            try:
                status, saved = ask(address, "api/corrections", body=marks.tobytes(), **place)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert status == 200
    corrections = xai_abn.Corrections(tmp_path)
    corrections.check()
    assert [c.path.name for c in corrections] == [saved[0]["file"]]
