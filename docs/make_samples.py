"""Make the pages that can be seen without an installation: docs/samples/report.html and docs/samples/app.html.

    python docs/make_samples.py

Both explain photographs that come with scikit-image and are in the public domain. The page of the app is as a browser
shows it, without its server; it needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.support.ui import WebDriverWait

import xai_abn
from xai_abn.app.server import make_app
from xai_abn.app.service import OfferedModel, Service
from xai_abn.cli.main import app as command

FOLDER = Path(__file__).parent / "samples"
PAGE = Path(xai_abn.__file__).parent / "app/page"
MODEL = "abn-lite0-masks"
EXAMPLES = ("cat", "astronaut", "coffee", "rocket", "camera", "retina")
READY = """
return document.body.dataset.ready === "true" && !document.querySelector(".cards.busy") &&
  [...document.querySelectorAll(".card .polarity")].every((place) => place.textContent) &&
  [...document.images].every((image) => image.complete);
"""
#: Put images in place of what a page without its server cannot draw.
FREEZE = """
const copy = (source, width, height) => {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
  return canvas.toDataURL("image/webp", 0.8);
};
for (const image of document.querySelectorAll("img[src]"))
  if (image.naturalWidth) image.src = copy(image, image.naturalWidth, image.naturalHeight);
for (const canvas of document.querySelectorAll("canvas")) {
  if (!canvas.width) continue;
  const image = document.createElement("img");
  for (const { name, value } of canvas.attributes)
    if (name !== "width" && name !== "height") image.setAttribute(name, value);
  image.alt = canvas.getAttribute("aria-label") ?? "";
  image.style.width = "100%";
  image.src = copy(canvas, canvas.width, canvas.height);
  canvas.replaceWith(image);
}
for (const input of document.querySelectorAll("input, button, select")) input.disabled = true;
for (const link of document.querySelectorAll("a[download]")) link.removeAttribute("href");
for (const list of document.querySelectorAll("select, datalist"))
  [...list.children].slice(8).forEach((option) => option.remove());
return document.documentElement.outerHTML;
"""
NOTE = (
    '<p style="margin:0;padding:.6em 1em;background:#3f51b5;color:#fff;text-align:center">A still page of the app: '
    "nothing reacts here. <code>xai-abn app</code> starts the real one.</p>"
)


def report() -> str:
    """Return the page of a small benchmark."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        Path("images").mkdir()
        for example in EXAMPLES:
            image = xai_abn.images.load_example(example).image
            image.thumbnail((320, 320))
            image.save(f"images/{example}.jpg", quality=88)
        methods, metrics = "abn,abn-class,abn-mask,grad-cam,center,sobel", "deletion,insertion,random-logit,polarity"
        run = f"benchmark run --data images:images --model {MODEL} --method {methods} --metric {metrics}"
        for line in (run, "benchmark report run.sqlite --output report --gallery 2"):
            command(line.split(), standalone_mode=False)
        return Path("report/report.html").read_text()


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Serve the page of the app in a thread; yields its address."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name), socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        offered = [OfferedModel(name, partial(xai_abn.load_model, name), {}) for name in (MODEL, "abn-lite0", "lite0")]
        page = make_app(Service(offered, Path("corrections"), []))
        server = uvicorn.Server(uvicorn.Config(page, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = server.force_exit = True
        thread.join(10)


def app_page() -> str:
    """Return the page of the app with an image, its maps and its style, and without its script."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--window-size=1280,900"):
        options.add_argument(argument)
    with served() as address:
        browser = webdriver.Chrome(options=options, service=Driver(shutil.which("chromedriver")))
        try:
            browser.get(f"{address}/")
            WebDriverWait(browser, 300).until(lambda _: browser.execute_script(READY))
            time.sleep(1)  # until it is drawn
            page = browser.execute_script(FREEZE)
        finally:
            browser.quit()
    style = (PAGE / "style.css").read_text()
    page = re.sub(r'<link rel="stylesheet"[^>]*>', lambda _: f"<style>{style}</style>", page)
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    page = re.sub(r"(<body[^>]*>)", lambda m: m[1] + NOTE, page).replace(address, "")
    return f"<!doctype html>\n{page}\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, make in {"report.html": report, "app.html": app_page}.items():
        page = make()
        (FOLDER / name).write_text(page)
        print(f"{FOLDER / name}: {len(page) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
