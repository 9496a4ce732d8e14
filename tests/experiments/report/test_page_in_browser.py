"""The page of a report in a real browser, where Chromium is installed."""

import json
import re
import shutil
import subprocess
from html import unescape
from itertools import product

import pytest

from experiments.report.conftest import fake_mask, fake_run
from pathex.experiments.report import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr")
FLAGS += ("--virtual-time-budget=20000", "--window-size=1400,900", "--dump-dom")
# The page tells the one around it what it finds in itself; that one can be narrower than any window.
PROBE = """<script>
const all = (what, inside = document) => [...inside.querySelectorAll(what)];
const wait = () => new Promise(done => setTimeout(done, 300));
const rows = () => all("form:first-of-type tbody tr")
  .map(row => ({name: row.cells[0].innerText.trim(), value: row.cells[3].innerText, box: row.getBoundingClientRect()}))
  .filter(row => row.box.height > 0).sort((a, b) => a.box.top - b.box.top).map(row => [row.name, row.value]);
const colour = (what, name) => getComputedStyle(document.querySelector(what))[name];
const opacities = () => all("#accuracy-1-1 .mark-line.role-mark path").map(line => +getComputedStyle(line).opacity);
setTimeout(async () => {
  const told = {
    charts: all(".chart").map(chart => [chart.id, all("svg .role-mark", chart).length]),
    outside: all("svg text").filter(text => text.getBoundingClientRect().width).filter(text => {
      const place = text.getBoundingClientRect(), card = text.closest("svg").getBoundingClientRect();
      return place.left < card.left - 1 || place.right > card.right + 1 || place.top < card.top - 1;
    }).map(text => text.textContent),
    width: innerWidth, page: document.documentElement.scrollWidth,
    cards: all(".card").map(card => card.scrollWidth - card.clientWidth),
    wide: all(".chart svg").filter(picture => picture.clientWidth > picture.closest(".chart").clientWidth).length,
    sizes: all("svg text").map(text => parseFloat(getComputedStyle(text).fontSize)),
    paper: colour("body", "backgroundColor"), ink: colour(".role-axis-label text", "fill"), rows: [rows()],
  };
  for (const input of [".up-3", ".down-3", "input.series-0", "input.sparsity-2"]) {
    document.querySelector(input).click();
    told.rows.push(rows());
  }
  document.querySelector("button[type=reset]").click();
  told.rows.push(rows());
  const point = all("#accuracy-1-1 .mark-symbol.role-mark").pop().querySelector("path");
  for (const kind of ["pointerover", "mouseover", "pointermove", "mousemove"])
    point.dispatchEvent(new MouseEvent(kind, {bubbles: true, clientX: 99, clientY: 99}));
  await wait();
  told.tip = document.querySelector("#vg-tooltip-element").innerText;
  told.before = opacities();
  const name = document.querySelector("#accuracy-1-1 .role-legend-symbol path");
  for (const kind of ["pointerdown", "mousedown", "pointerup", "mouseup", "click"])
    name.dispatchEvent(new MouseEvent(kind, {bubbles: true}));
  await wait();
  told.after = opacities();
  parent.postMessage(JSON.stringify(told), "*");
}, 2000);
</script></body>"""
AROUND = """<iframe src="page.html" style="border: 0; width: {width}px; height: 800px"></iframe><pre></pre>
<script>onmessage = message => {{ document.querySelector("pre").textContent = message.data; }}</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of thirty runs and more, with every figure."""
    parent = tmp_path_factory.mktemp("sweep")
    for seed, (place, method) in product(range(3), enumerate(("px", "synflow", "magnitude", "random"))):
        for sparsity in (0.9, 0.956, 0.982):
            dead = int(method == "magnitude" and sparsity == 0.982)
            folder = fake_run(parent, method, sparsity, seed, classes=[*"abcdefghij"], dead_layers=dead)
            fake_mask(folder, **{f"layer{k}": (5 * k + 3 * seed + place) % 13 * (k != 3 + place) for k in range(21)})
        fake_run(parent, "dense", 0.9, seed) if not place else None
    return build([parent], tmp_path_factory.mktemp("report")).page


def seen(page, tmp_path, width, dark):
    """What the page tells of itself, and what the browser complains about."""
    before, _, after = page.read_text(encoding="utf-8").rpartition("</body>")
    (tmp_path / "page.html").write_text(before + PROBE + after, encoding="utf-8")
    (tmp_path / "around.html").write_text(AROUND.format(width=width), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM, *FLAGS, scheme, f"--user-data-dir={tmp_path / 'user'}", (tmp_path / "around.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search("<pre>(.*)</pre>", done.stdout)
    assert found and found[1], complaints
    return json.loads(unescape(found[1])), complaints


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_without_complaint_fits_sorts_filters_and_tells(page, tmp_path, width, dark):
    told, complaints = seen(page, tmp_path, width, dark)
    assert complaints == []
    names = ["accuracy-1-1", "layers-1-1", "overlap-1-1", "dead_layers-1-1", "training-1-1", "training-1-2"]
    assert [name for name, _ in told["charts"]] == names and all(marks for _, marks in told["charts"])
    assert told["width"] == width and told["page"] == width and not any(told["cards"]) and told["wide"] == 0
    assert told["outside"] == [] and min(told["sizes"]) >= 11
    light, black = "rgb(246, 247, 249)", "rgb(31, 35, 40)"
    assert (told["paper"] == light, told["ink"] == black) == ((False, False) if dark else (True, True))
    first, up, down, less, fewer, again = told["rows"]
    values = [float(value.split()[0]) for _, value in up]
    assert values == sorted(values) and up != first and sorted(up) == sorted(first)
    assert [value for _, value in down] == [value for _, value in up][::-1]
    assert first[0][0] == "dense" and less == [row for row in down if row[0] != "dense"]
    assert len(less) == 12 and len(fewer) == 8 and [row for row in less if row in fewer] == fewer and again == first
    assert "series" in told["tip"] and "sparsity" in told["tip"]
    assert set(told["before"]) == {1} and sorted(told["after"]) == [0.125, 0.125, 0.125, 1]
