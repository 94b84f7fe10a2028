"""How long after a stroke on the page the new numbers show, and how long the page takes to open.

    python -m benchmarks.app.strokes [--strokes N] [--output FILE]

Starts ``xai-abn app`` in a process of its own and paints in a headless Chromium (``apt-get install chromium
chromium-driver``). All times are the browser's own: from the last movement of the pointer to the frame after the one in
which the numbers of both branches changed; from the start of loading to the first contentful paint, and to the maps.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks._harness import machine, make_parser, write_json

#: Notes when the pointer moved last, and when numbers showed last.
WATCH = """
window.moved = window.shown = 0;
document.querySelector("#canvas").addEventListener("pointermove", (event) => {
  if (event.buttons) window.moved = event.timeStamp;
}, true);
new MutationObserver(() => requestAnimationFrame(() => requestAnimationFrame(() => {
  window.shown = performance.now();
}))).observe(document.body, { attributes: true, attributeFilter: ["data-answers"] });
"""
#: Returns when the page was painted first and when its maps were there, in milliseconds.
OPENED = """
const paint = performance.getEntriesByName("first-contentful-paint")[0];
return [paint.startTime, performance.getEntriesByType("resource").filter(({ name }) => name.includes("/api/explain"))
  [0].responseEnd];
"""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--strokes", type=int, default=50)
    parser.add_argument("--model", default="abn-lite0")
    arguments = parser.parse_args()
    facts = machine() | {"threads": arguments.threads, "load": round(os.getloadavg()[0], 1)}
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "xai_abn", "app", "--no-browser", "--port", "0", "--model", arguments.model]
        server = subprocess.Popen(
            [*command, "--corrections", folder], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert server.stdout is not None
        browser = open_browser()
        try:
            result = measured(browser, server.stdout.readline().split("  ")[0], arguments.strokes)
        finally:
            browser.quit()
            server.kill()
            server.wait()
    for name, value in result.items():
        print(f"{name}: {value:.0f} ms")
    write_json(arguments.output, {"machine": facts, **{name: round(value) for name, value in result.items()}})


def open_browser() -> Any:
    """Return a headless Chromium of the size of a laptop."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "no-proxy-server", "window-size=1440,900"):
        options.add_argument(f"--{argument}")
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or ""))


def measured(browser: Any, address: str, strokes: int) -> dict[str, float]:
    """Return the median and the slowest twentieth of the strokes, and the times of opening, in milliseconds."""
    wait_for(browser, lambda: browser.get(f"{address}#image=example:cat&name=example:cat&tab=correct"))
    wait_for(browser, lambda: browser.execute_script("if (!document.body.dataset.answers) throw 'not yet'"))
    first_paint, maps = browser.execute_script(OPENED)
    browser.execute_script(WATCH)
    area = browser.execute_script("return document.querySelector('#canvas').getBoundingClientRect().toJSON()")
    times = []
    for number in range(strokes):
        across, down = 0.2 + 0.6 * (number * 7 % strokes) / strokes, 0.2 + 0.6 * number / strokes
        for step, kind in enumerate(["mousePressed", *["mouseMoved"] * 6, "mouseReleased"]):
            at = {"x": area["x"] + (across + step * 0.02) * area["width"], "y": area["y"] + down * area["height"]}
            event = {"type": kind, "button": "left", "buttons": 1, "clickCount": 1, **at}
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
        time.sleep(1)  # until the last answer, also on a busy machine
        moved, shown = browser.execute_script("return [window.moved, window.shown]")
        times.append(shown - moved)
    times.sort()
    return {
        "stroke, median": statistics.median(times),
        "stroke, 95 of 100": times[min(len(times) - 1, int(0.95 * len(times)))],
        "first paint": first_paint,
        "maps": maps,
    }


def wait_for(browser: Any, call: Any, seconds: float = 60) -> None:
    """Call until it does not fail."""
    from selenium.common.exceptions import WebDriverException

    deadline = time.monotonic() + seconds
    while True:
        try:
            call()
            return
        except WebDriverException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main()
