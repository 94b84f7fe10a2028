"""The page in a real browser: look, compare, paint, save, find again; on a phone, by keyboard, two at once."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from serving import Serving
from support import open_browser

import xai_abn
from xai_abn.app.service import OfferedModel, Question, Service
from xai_abn.datasets import Sample
from xai_abn.rendering import blend

READY = "document.body.dataset.ready === 'true' && !document.querySelector('.cards.busy')"
#: What the page shows of the class that is corrected: before and after in the two branches.
NUMBERS = "return [...document.querySelectorAll('.changes .is-target .number')].map((row) => row.textContent)"

#: Width, height and RGBA of the drawing of a method's map.
PIXELS = """
const c = document.querySelector(`#cards [data-method=${arguments[0]}] canvas`);
return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]
"""


@pytest.fixture(scope="module")
def serving(tmp_path_factory, abn_lite0, small_abn):
    folder = tmp_path_factory.mktemp("corrections")
    named = xai_abn.wrap(
        small_abn.module,
        labels=["tiger cat", "espresso", *(f"number {i}" for i in range(2, 10))],
        preprocess=small_abn.preprocess,
        name="small-abn",
    )
    drawn = tmp_path_factory.mktemp("images")
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(drawn / f"{seed}.png")
    (drawn / "broken.png").write_bytes(b"nothing")
    found = Serving([abn_lite0, named], folder, [Sample(str(path)) for path in sorted(drawn.iterdir())])
    found.folder = folder
    yield found
    found.stop()


@pytest.fixture(scope="module")
def chromium():
    found = open_browser()
    yield found
    found.quit()


class Page:
    """The page in a browser, opened at an example."""

    def __init__(self, browser, serving, width=1280, tab="look", image="example:cat", fresh=True):
        self.browser, self.serving = browser, serving
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": width < 600})
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(f"{serving.address}/#model=abn-lite0&tab={tab}&image={image}&name={image}")
        if fresh:
            self.run("localStorage.clear()")
        self.until(READY)
        if tab == "correct":
            self.until("document.body.dataset.answers")

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def until(self, condition, seconds=15):
        deadline = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < deadline, (condition, self.text("#message"), self.browser.get_log("browser"))
            time.sleep(0.02)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0])?.textContent.trim()", selector)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def numbers(self):
        return self.run(NUMBERS)

    def answers(self, action):
        """Do something that changes the marks, and wait until the page shows the answers to it."""
        before = int(self.run("return document.body.dataset.answers"))
        action()
        self.until(f"Number(document.body.dataset.answers) > {before}")
        time.sleep(0.15)

    def stroke(self, *places):
        """Drag the mouse over places, in shares of the canvas from its middle."""
        from selenium.webdriver.common.action_chains import ActionChains

        canvas = self.find("#canvas")
        side = canvas.size["width"]
        points = [(round(x * side), round(y * side)) for x, y in places]
        chain = ActionChains(self.browser, duration=10).move_to_element_with_offset(canvas, *points[0]).click_and_hold()
        for (x, y), (next_x, next_y) in pairwise(points):
            chain = chain.move_by_offset(next_x - x, next_y - y)
        self.answers(chain.release().perform)

    def keys(self, selector, *keys):
        self.find(selector).send_keys(*keys)


def test_looking(chromium, serving, abn_lite0, image_file):
    """Maps equal explain()'s; a class by its name, a difference, a method, values under the pointer; all from here."""
    from selenium.webdriver.common.keys import Keys

    page = Page(chromium, serving)
    expected = xai_abn.explain(abn_lite0, "example:cat", ["abn", "abn-class", "grad-cam", "cam"])
    shown = page.run(
        "return [...document.querySelectorAll('#cards canvas')].map((c) => [c.record.method, [...c.map.values]])"
    )
    assert [method for method, _ in shown] == ["abn", "abn-class", "grad-cam", "cam"]
    for method, values in shown:
        assert np.array_equal(np.array(values, np.float32), expected[method].map.ravel())
    assert page.text("#top .number") == f"{100 * expected['abn'].probability:.1f} %"
    page.until("document.querySelectorAll('.polarity.upright, .polarity.inverted, .polarity.undecided').length === 4")

    page.run("document.querySelector('#outline').click()")
    for opacity in (None, 0.6):  # red and blue, and the colormap
        for method in ("cam", "grad-cam"):
            shown = page.run(PIXELS, method)
            right = blend(expected[method].view, expected[method].map, opacity=opacity)
            pixels = np.array(shown[2]).reshape(shown[1], shown[0], 4)[..., :3]
            assert np.abs(pixels - right.astype(int)).max() <= 3, (method, opacity)
        page.run("document.querySelector('#even').click()")
    page.run("document.querySelector('#outline').click()")

    page.keys("#class", "tabb", Keys.ENTER)
    page.until("document.querySelector('#cards [data-method=grad-cam] canvas').record.label === 'tabby'")
    page.keys("#versus", "egyptian", Keys.ENTER)
    page.until("document.querySelector('[data-method=cam] canvas').record.label === 'tabby rather than Egyptian cat'")
    why = xai_abn.explain(abn_lite0, "example:cat", "cam", xai_abn.Difference("tabby", versus="Egyptian cat"))["cam"]
    values = page.run("return [...document.querySelector('#cards [data-method=cam] canvas').map.values]")
    assert np.array_equal(np.array(values, np.float32), why.map.ravel())
    assert "Difference('tabby', versus='Egyptian cat')" in page.text("#python")

    page.keys("#versus", Keys.CONTROL + "a", Keys.NULL, Keys.BACKSPACE, Keys.ENTER)
    page.keys("#also", "lynx", Keys.ENTER)
    page.until("document.querySelectorAll('#cards .card').length === 7")
    both = xai_abn.explain(abn_lite0, "example:cat", "cam", [["tabby", "lynx"]])[0]
    values = page.run("return [...[...document.querySelectorAll('#cards canvas')].pop().map.values]")
    assert np.array_equal(np.array(values, np.float32), both["cam", "lynx"].map.ravel())
    page.run("document.querySelector('[aria-label=\"Remove lynx\"]').click()")
    page.until("document.querySelectorAll('#cards .card').length === 4")

    page.keys("#class", Keys.CONTROL + "a", Keys.NULL, "platypuss", Keys.ENTER)
    assert "No class of abn-lite0 is called 'platypuss'" in page.text("#message")
    page.run("document.querySelector('[aria-label=\"Remove abn-class\"]').click()")
    page.until("document.querySelectorAll('#cards .card').length === 3")
    page.keys("#cards canvas", Keys.ARROW_RIGHT)
    row = expected["abn"].map.shape[0] // 2
    value = float(expected["abn"].map[row, row + 1])
    assert page.text("#cards .readout").startswith(f"{value:.3g}"[:4])

    hosts = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [entry["params"]["request"]["url"] for entry in hosts if entry["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 10
    assert all(url.startswith((serving.address, "blob:", "data:", "about:")) for url in asked)
    complaints = [entry["message"] for entry in chromium.get_log("browser")]
    assert [text for text in complaints if "/api/thumbnail" not in text] == []  # of the broken file in the folder


def test_maps_with_limits_are_drawn_between_them(chromium, serving):
    """A mask with small values stays dark; without limits its largest value is drawn as 1."""
    Page(chromium, serving)
    script = """
    const [limits, done] = arguments, values = new Float32Array([0, 0.01, 0.02, 0.04]);
    import(document.querySelector("script[type=module]").src.replace("app.js", "maps.js"))
      .then((maps) => done([...maps.scaled({ values, height: 2, width: 2, limits }, 2, 2).values]));
    """
    assert chromium.execute_async_script(script, [0, 1]) == pytest.approx([0, 0.01, 0.02, 0.04])
    assert chromium.execute_async_script(script, None) == pytest.approx([0, 0.5, 1, 1])


def test_masks_are_offered_first(tmp_path):
    """With the scale they are drawn on and what they say."""
    found = Service([OfferedModel("abn-lite0-masks", lambda: xai_abn.load_model("abn-lite0-masks"), {})], tmp_path)
    assert found.describe("abn-lite0-masks")["chosen"] == ["abn-mask", "abn", "abn-class", "grad-cam"]
    (shown,) = found.explain(Question("abn-lite0-masks", "example:cat", ("abn-mask",)))["maps"]
    assert tuple(shown["limits"]) == (0, 1)
    assert "must stay visible so that tiger cat" in shown["says"]


def test_uploads(chromium, serving, image_file, tmp_path):
    """An image is shown; a broken, a large and an empty file are a sentence each, and the image stays."""
    page = Page(chromium, serving)
    page.find("#file").send_keys(str(image_file))
    page.until("document.querySelector('#image-name').textContent === 'image.png' && !document.querySelector('.busy')")
    expected = xai_abn.explain(serving.service._offered("abn-lite0").adapter, image_file, "abn")["abn"]
    assert np.array_equal(
        np.array(page.run("return [...document.querySelector('#cards canvas').map.values]"), np.float32),
        expected.map.ravel(),
    )
    broken, empty, tiny = tmp_path / "broken.png", tmp_path / "empty.jpg", tmp_path / "tiny.png"
    broken.write_bytes(image_file.read_bytes()[:60])
    empty.write_bytes(b"")
    Image.new("RGB", (4, 4)).save(tiny)
    for file, words in ((broken, "damaged or cut short"), (empty, "empty"), (tiny, "too small")):
        page.find("#file").send_keys(str(file))
        page.until(f"document.querySelector('#message').textContent.includes({json.dumps(words)})")
        assert file.name in page.text("#message")
        assert page.text("#image-name") == "image.png"
    serving.service._uploads._kept.clear()  # as a server that was started again
    page.keys("#class", "tabb", "\ue007")
    page.until("document.querySelector('#cards [data-method=grad-cam] canvas').record.label === 'tabby'")


def test_painting_saving_and_finding_again(chromium, serving, abn_lite0):
    """The prediction follows marks on M and is the network's; undo, keep and ignore; a reload finds what was saved."""
    page = Page(chromium, serving, tab="correct")
    before = page.numbers()
    page.stroke((-0.2, -0.2), (0.1, 0.1), (0.2, -0.1))
    painted = page.numbers()
    assert [new != old for new, old in zip(painted, before, strict=True)] == [True, False]
    page.answers(page.find("#undo").click)
    assert page.numbers() == before
    page.answers(page.find("#redo").click)
    assert page.numbers() == painted
    page.answers(page.find("#ignore").click)
    ignored = page.numbers()
    page.answers(lambda: page.keys("#canvas", "\ue009z"))
    page.answers(page.find("#keep").click)
    assert len({*map(tuple, (before, painted, ignored, page.numbers()))}) == 4
    page.run("document.querySelector('[data-tool=\"0\"]').click()")
    page.stroke((0.3, 0.3), (0.3, 0.4))
    last = page.numbers()

    page.find("#save").click()
    page.until("document.querySelector('#saved').className === 'done'")
    look, avoid = sorted(xai_abn.Corrections(serving.folder).of("example:cat"), key=lambda c: c.kind)
    assert (look.kind, avoid.kind, look.label) == ("look here", "not here", "tiger cat")
    edit = abn_lite0.edit("example:cat")
    answers = edit.marked("tiger cat", look=look.mask, avoid=avoid.mask)
    assert float(last[0].split(" %")[0]) == pytest.approx(100 * float(answers.probabilities[282]), abs=0.3)
    with torch.no_grad():
        inputs = edit.image.tensor[None].contiguous(memory_format=abn_lite0.memory_format)
        expected = abn_lite0.module(inputs, attention=answers.attention_map[None, None]).logits.softmax(dim=1)[0, 282]
    assert float(answers.probabilities[282]) == float(expected)

    again = Page(chromium, serving, tab="correct")
    assert again.text("#saved").startswith("Saved in")
    assert again.numbers()[0].split(" %")[0] == last[0].split(" %")[0]
    again.stroke((-0.3, 0.3), (-0.3, 0.35))
    assert again.text("#saved") == "Not saved yet."
    unsaved = again.numbers()
    third = Page(chromium, serving, tab="correct", fresh=False)  # unsaved marks live through a reload
    assert third.text("#saved") == "Not saved yet."
    assert third.numbers() == unsaved


def test_m_and_the_class_map_are_painted_apart(chromium, serving, abn_lite0):
    """Each has its own marks, undo and answers; the page says which is painted, and a record says which was."""
    page = Page(chromium, serving, tab="correct", image="example:astronaut")
    target = page.run("return document.querySelector('#edited-prediction .is-target .name').textContent")
    before = page.numbers()
    painted_on = "return document.querySelector('#canvas').dataset.painted"
    assert page.run(painted_on) == "attention-map"
    assert page.text("#layer-says").startswith("M weights the features of the prediction")

    page.find("[data-layer='1']").click()
    assert page.run(painted_on) == "class-map"
    assert "--on class-map" in page.text("#layer-says")
    page.stroke((-0.2, -0.1), (0.2, 0.1))
    on_class = page.numbers()
    assert [new != old for new, old in zip(on_class, before, strict=True)] == [False, True]
    assert page.run("return [...document.querySelectorAll('[data-layer] .marked')].map((dot) => dot.hidden)") == [
        True,
        False,
    ]

    page.keys("#canvas", "m")
    assert page.run(painted_on) == "attention-map"
    assert not page.find("#undo").is_enabled()  # nothing is painted on M
    page.answers(lambda: page.keys("#canvas", "2", " ", *["\ue012"] * 4, " "))
    both = page.numbers()
    assert [new != old for new, old in zip(both, on_class, strict=True)] == [True, False]
    page.answers(page.find("#undo").click)
    assert page.numbers() == on_class
    page.answers(page.find("#redo").click)
    assert page.numbers() == both

    page.find("#save").click()
    page.until("document.querySelector('#saved').className === 'done'")
    assert "'not here' on M" in page.text("#saved")
    assert "'look here' on the class map" in page.text("#saved")
    saved = {(c.on, c.kind): c.mask for c in xai_abn.Corrections(serving.folder).of("example:astronaut")}
    assert set(saved) == {("attention-map", "not here"), ("class-map", "look here")}
    edit = abn_lite0.edit("example:astronaut")
    index = abn_lite0.target_index(target, abn_lite0.number_of_classes)
    m = edit.marked(index, avoid=saved["attention-map", "not here"], on="attention-map")
    class_map = edit.marked(index, look=saved["class-map", "look here"], on="class-map")
    expected = (float(m.probabilities[index]), float(class_map.attention_probabilities[index]))
    assert [float(text.split(" %")[0]) for text in both] == pytest.approx([100 * p for p in expected], abs=0.3)
    again = Page(chromium, serving, tab="correct", image="example:astronaut")
    assert [text.split(" %")[0] for text in again.numbers()] == [text.split(" %")[0] for text in both]
    again.find("#reset").click()
    again.find("#save").click()
    again.until("document.querySelector('#saved').className === 'done'")
    assert [c.on for c in xai_abn.Corrections(serving.folder).of("example:astronaut")] == ["class-map"]


def test_painting_by_keyboard(chromium, serving):
    """Arrows move the brush, space puts it down, M chooses the map; the tabs too are reached."""
    from selenium.webdriver.common.keys import Keys

    page = Page(chromium, serving, image="example:coffee")
    page.keys("#tab-look", Keys.ARROW_RIGHT)
    page.until("document.body.dataset.answers")
    before = page.numbers()
    page.answers(lambda: page.keys("#canvas", "m", "2", " ", *[Keys.ARROW_LEFT] * 4, " "))
    assert page.numbers()[1] != before[1]
    assert page.run("return document.querySelector('[data-tool=\"2\"]').getAttribute('aria-checked')") == "true"
    page.answers(lambda: page.keys("#canvas", Keys.CONTROL + "z"))
    assert page.numbers() == before


def test_a_phone(chromium, serving):
    """Nothing scrolls sideways in any tab, and a finger paints without scrolling."""
    page = Page(chromium, serving, width=390, image="example:rocket")
    for tab in ("look", "compare", "correct"):
        page.find(f"#tab-{tab}").click()
        time.sleep(0.3)
        assert page.run("return document.documentElement.scrollWidth") <= 390
    page.until("document.body.dataset.answers")
    before = page.numbers()
    page.run("document.querySelector('#canvas').scrollIntoView({block: 'center'})")
    area = page.run(
        "const a = document.querySelector('#canvas').getBoundingClientRect(); return [a.left, a.top, a.width]"
    )
    scrolled = page.run("return scrollY")

    def touch(kind, share):
        points = [{"x": area[0] + share * area[2], "y": area[1] + share * area[2]}] if kind != "touchEnd" else []
        chromium.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def swipe():
        touch("touchStart", 0.4)
        for share in (0.45, 0.5, 0.55, 0.6):
            touch("touchMove", share)
        touch("touchEnd", 0.6)

    page.answers(swipe)
    assert page.numbers() != before
    assert page.run("return scrollY") == scrolled
    assert "before" in page.text(".summary")


def test_comparing(chromium, serving):
    """Two models on one image, each with its own answers and map, of the same class where both have it."""
    page = Page(chromium, serving)
    page.find("#tab-compare").click()
    page.until("document.querySelectorAll('#pair .card').length === 2")
    labels = page.run(
        "return [...document.querySelectorAll('#pair canvas')].map((c) => [c.record.model, c.record.method])"
    )
    assert labels == [["abn-lite0", "abn"], ["small-abn", "abn"]]
    page.run("document.querySelectorAll('#top button')[2].click()")  # tabby, which small-abn lacks
    page.until("document.querySelector('#pair').textContent.includes('small-abn has no class tabby')")


def test_the_queue(chromium, serving):
    """Images of the folder by suspicion, with what another model says; a broken one is named; one is chosen."""
    page = Page(chromium, serving)
    page.find("#tab-queue").click()
    page.until("document.querySelector('#queue-state').textContent.startsWith('4 images')")
    assert "broken.png: not an image" in page.text("#queue-state")
    scores = [row["score"] for row in serving.ask("api/queue", model="abn-lite0")[1]["rows"] if not row["like"]]
    assert scores == sorted(scores, reverse=True)
    page.run(
        "const s = document.querySelector('#queue-other'); s.value = 'small-abn'; s.dispatchEvent(new Event('change'))"
    )
    page.until(
        "document.querySelectorAll('#queue-list .why').length && "
        "document.querySelector('#queue-list').textContent.includes('small-abn: ')"
    )
    page.run("document.querySelector('#queue-list button').click()")
    page.until("document.body.dataset.answers && !document.querySelector('#correct').hidden")
    assert page.text("#image-name").endswith(".png")


def test_two_browsers_at_once(chromium, serving):
    """Each paints its own image; each sees its own numbers, and both save."""
    other = open_browser()
    try:
        first = Page(chromium, serving, tab="correct", image="example:coffee")
        second = Page(other, serving, tab="correct", image="example:rocket")
        first.stroke((-0.2, 0), (0.2, 0))
        second.stroke((0, -0.2), (0, 0.2))
        painted = first.numbers(), second.numbers()
        assert painted[0] != painted[1]
        for page in (first, second):
            page.find("#save").click()
        for page in (first, second):
            page.until("document.querySelector('#saved').className === 'done'")
        assert (first.numbers(), second.numbers()) == painted
        corrections = xai_abn.Corrections(serving.folder)
        assert len(corrections.of("example:coffee")) == len(corrections.of("example:rocket")) == 1
        corrections.check()
    finally:
        other.quit()


def test_a_lost_connection(chromium, serving):
    """Is a sentence; the marks stay, and when the server is back the page goes on by itself."""
    page = Page(chromium, serving, tab="correct", image="example:camera")
    before = page.numbers()
    serving.stop()
    page.run("document.querySelector('#canvas').focus()")
    page.keys("#canvas", " ")
    page.until("document.querySelector('#message').textContent.includes('does not answer')")
    serving.start()
    page.until("document.querySelector('#message').hidden")
    page.until(f"JSON.stringify((() => {{ {NUMBERS} }})()) !== {json.dumps(json.dumps(before, ensure_ascii=False))}")
    page.find("#save").click()
    page.until("document.querySelector('#saved').className === 'done'")
