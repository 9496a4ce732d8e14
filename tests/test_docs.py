"""What the documentation says is so: code runs, commands parse, generated parts are fresh, links lead somewhere."""

import csv
import dataclasses
import importlib
import inspect
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import pathex
from pathex.cli import main
from pathex.masks import prunable_weights
from pathex.pruning import searches
from pathex.scores import Problem
from pathex.tasks import task
from small_images import write_image
from test_structure import ORDER

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
EXAMPLES = sorted((DOCS / "examples").glob("*.md"))
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands() -> list[str]:
    lines = [line.strip() for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    found = [re.sub(r"\$\w+", "0", line.replace("$method", "px")) for line in lines if line.startswith("pathex ")]
    return sorted(set(found))


def named(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("page", paths, ids=[path.stem for path in paths])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Narrow networks, few images and few rounds wherever a page does not say how many; an empty folder to write to."""

    def wrap(room: Any, name: str, change: Callable[..., Any]) -> None:
        original = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *args, **kwargs: change(original, *args, **kwargs))

    def load(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        data = original(*args, **kwargs)
        parts = {part: getattr(data, part) for part in ("train", "test")}
        few = {n: dataclasses.replace(p, data=p.data[:400], labels=p.labels[:400]) for n, p in parts.items()}
        return dataclasses.replace(data, **few)

    monkeypatch.chdir(tmp_path)
    wrap(pathex.data, "load", load)
    wrap(task, "load", load)
    wrap(pathex.data, "pruning_set", lambda original, data, **kwargs: original(data, 1, kwargs["seed"]))

    def small_own(original, name, *args, **kwargs):
        return original(name, *args, **(kwargs if ":" in name else {"width": 4, **kwargs}))

    wrap(pathex.models, "create", small_own)
    few = lambda method="px": {} if searches(method) else {"rounds": 2}  # noqa: E731
    wrap(pathex, "prune", lambda original, *args, **kwargs: original(*args, **{**few(*args[1:2]), **kwargs}))


@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
@named([page for page in PAGES if page not in (ROOT / "CONTRIBUTING.md", *EXAMPLES) and blocks(page, "python")])
def test_code_runs(page: Path, small: None) -> None:
    names: dict[str, Any] = {"__name__": page.stem}
    with torch.random.fork_rng(devices=[]):
        for block in blocks(page, "python"):
            exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)[1:]
    assert main([*words, "--print_config"]) == 0, capsys.readouterr().err
    settings = yaml.safe_load(capsys.readouterr().out)
    if words[0] == "run":
        pathex.experiments.runs.check_config(pathex.experiments.runs.RunConfig(**settings))
    if words[0] == "methods" and settings.get("name"):
        assert pathex.methods(settings["name"]).name == settings["name"]


def printed(page: Path) -> Iterator[tuple[str, str]]:
    """The Python blocks of an example, each with what it prints as the page has it."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    for (kind, code), (after, text) in zip(found, [*found[1:], ("", "")], strict=True):
        if kind == "python":
            yield code, text if after == "text" else ""


@named(EXAMPLES)
def test_examples_run_as_they_stand_and_print_what_they_say(page, tmp_path, monkeypatch, capsys):
    """Numbers may differ by a fifth: accuracies after short trainings follow rounding, which differs by processor."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    with torch.random.fork_rng(devices=[]):
        for code, text in printed(page):
            exec(compile(code, str(page), "exec"), names)
            said = capsys.readouterr().out
            assert NUMBER.sub("#", " ".join(said.split())) == NUMBER.sub("#", " ".join(text.split()))
            expected, found = ([float(n.replace(",", "")) for n in NUMBER.findall(part)] for part in (text, said))
            assert found == pytest.approx(expected, rel=0.2, abs=0.1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("jupytext", "mkdocs", "mkdocstrings"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    return folder


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    words = ["mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(folder)]
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def test_there_are_six_examples_and_each_is_a_notebook_too(site: Path) -> None:
    assert len(EXAMPLES) == 6
    for page in EXAMPLES:
        notebook = json.loads((site / "examples" / f"{page.stem}.ipynb").read_text(encoding="utf-8"))
        code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert code == [block.strip() for block, _ in printed(page)]
        assert f'href="{page.stem}.ipynb"' in (site / "examples" / f"{page.stem}.html").read_text(encoding="utf-8")


def test_functions_and_classes_have_their_place_in_the_reference(site: Path) -> None:
    rooms = {room: importlib.import_module(f"pathex.{room}") for level in ORDER for room in level if room != "cli"}
    assert {page.stem for page in (DOCS / "api").glob("*.md")} == {"index", *rooms}
    for name, room in rooms.items():
        html = (site / "api" / f"{name}.html").read_text(encoding="utf-8")
        shown = set(re.findall(rf'id="pathex\.{name}\.(\w+)(?:\.\1)?"', html))
        told = {
            public
            for public in room.__all__
            if inspect.isroutine(found := getattr(room, public)) or inspect.isclass(found)
        }
        assert told <= shown <= set(room.__all__), name


@pytest.mark.parametrize("text", ["::: pathex.masks.nothing", "[x][pathex.masks.nothing]", "[x](nothing.md)"])
def test_the_site_is_not_built_with_a_broken_name_or_link(text: str, site: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# One page\n\n{text}\n", encoding="utf-8")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    for name in ("nav", "not_in_nav", "hooks"):
        del config[name]
    config["plugins"][1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT / "src")]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0 and "nothing" in built.stderr


PROBE = """<script>onload = () => parent.postMessage(JSON.stringify([
  document.documentElement.scrollWidth, document.documentElement.scrollHeight,
  document.querySelectorAll(".rows input[type=search]").length,
  [...document.querySelectorAll(".rows")].filter(part => part.scrollWidth > part.clientWidth).length]), "*")</script>"""
AROUND = """<iframe src="{page}" style="border: 0; width: {width}px; height: 800px"></iframe><pre></pre>
<script>onmessage = message => {{ document.querySelector("pre").textContent = message.data }}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", ["index", "zoo", "results", "measurements", "guides/deployment", "api/masks"])
def test_pages_fit_the_screen_and_long_tables_are_searched(page: str, width: int, site: Path, tmp_path: Path) -> None:
    html = (site / f"{page}.html").read_text(encoding="utf-8")
    probe = site / f"{page}-{width}.html"
    probe.write_text(html.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    around = site / "around.html"
    around.write_text(AROUND.format(page=probe.as_uri(), width=width), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --hide-scrollbars"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path}", "--window-size=1400,900", around.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "DataTable" in line]
    found = re.search("<pre>(.*)</pre>", done.stdout)
    assert complaints == [] and found is not None
    wide, high, searches, cut = json.loads(found[1])
    assert wide == width
    if page in {"zoo", "results", "measurements"}:
        assert searches > 3 and high < 25_000
    if width == 1280 and page != "measurements":
        assert cut == 0


def test_generated_parts_are_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "make_docs.py"))
    for page, parts in made["PARTS"].items():
        text = page.read_text(encoding="utf-8")
        assert text == made["renewed"](text, parts), f"{page.name} is old: run python scripts/make_docs.py"
    with pytest.raises(ValueError, match="lacks the marks"):
        made["renewed"]("# pathex\n", {"methods": str})


def test_every_method_has_its_page_and_every_page_is_in_the_navigation() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == set(pathex.methods())

    def leaves(entry: Any) -> list[str]:
        parts = entry.values() if isinstance(entry, dict) else entry
        return [entry] if isinstance(entry, str) else [leaf for part in parts for leaf in leaves(part)]

    listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    linked = DOCS / "methods"  # by the table of methods.md
    pages = (page for page in DOCS.rglob("*.md") if page.parent != linked)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in pages)


@named(PAGES)
def test_links_lead_to_files(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []
    assert all((page.parent / t).read_bytes()[:4] == b"\x89PNG" for t in targets if t.endswith(".png"))


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert citation["version"] == newest[1] == pathex.__version__


def test_the_scorer_of_the_contribution_guide_works_and_the_registry_is_as_it_shows_it() -> None:
    (diff,) = blocks(ROOT / "CONTRIBUTING.md", "diff")
    parts = re.split(r"^--- .*\n\+\+\+ b/(.*)\n", diff, flags=re.MULTILINE)[1:]
    files = {name: text.splitlines() for name, text in zip(parts[::2], parts[1::2], strict=True)}
    added = "\n".join(line[1:] for line in files["src/pathex/scores/lamp.py"])
    names: dict[str, Any] = {}
    exec(added, names)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].weight.data = torch.tensor([[3.0, -1.0, 0.0], [0.5, -2.0, 1.5]])
    nn.init.zeros_(model[1].weight)
    scores = names["Lamp"]()(Problem(model, prunable_weights(model), [(torch.ones(1, 3), None)]))
    squares = model[0].weight.detach().square().flatten().tolist()
    expected = [own / sum(other for other in squares if other >= own) for own in squares]
    assert scores["0.weight"].flatten().tolist() == pytest.approx(expected)
    assert not scores["1.weight"].any()
    registry = (ROOT / "src" / "pathex" / "scores" / "__init__.py").read_text(encoding="utf-8")
    context = [line[1:] for line in files["src/pathex/scores/__init__.py"] if line.startswith(" ")]
    assert len(context) == 2 and all(line in registry.splitlines() for line in context)


def test_results_are_those_of_the_summaries_that_were_written_with_the_rows() -> None:
    """Means and intervals of two settings, computed when they were trained, and how many values were published."""
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    for rows, summary, columns in (
        ("results/fashion-mini-demo/table.csv", "summary.csv", ("mean_accuracy", "ci95_low", "ci95_high")),
        ("benchmarks/rows/lite0.csv", "lite0-summary.csv", ("accuracy", "accuracy_low", "accuracy_high")),
    ):
        shown = text.partition(f"`{rows}`")[2].partition("</div>")[0]
        with (ROOT / rows).with_name(summary).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                removed = 0 if row["method"] == "dense" else float(row["sparsity"])
                cells = re.search(rf"^\| {row['method']} \| {removed:g} \| (.*) \| (.*) to (.*) \| 3 \|$", shown, re.M)
                assert cells is not None, row
                expected = [100 * float(row[name]) for name in columns]
                assert [float(cell) for cell in cells.groups()] == pytest.approx(expected, abs=0.06)
    published = files("pathex.experiments.report").joinpath("published.csv").read_text(encoding="utf-8")
    values = [row for row in csv.DictReader(published.splitlines()) if row["value"]]
    assert len(re.findall(r" paper \| (?:printed|digitised) \|$", text, re.M)) == len(values)


def test_masks_go_to_the_hub_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the calls of the library, without its network."""
    hub, there = pytest.importorskip("huggingface_hub"), tmp_path / "there"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "create_repo", create_autospec(hub.create_repo))
    upload = create_autospec(hub.upload_file)
    upload.side_effect = lambda **given: shutil.copy(given["path_or_fileobj"], there)
    monkeypatch.setattr(hub, "upload_file", upload)
    monkeypatch.setattr(hub, "hf_hub_download", create_autospec(hub.hf_hub_download, side_effect=lambda *_: there))
    model = nn.Linear(3, 2)
    mask = pathex.Mask({"weight": torch.tensor([[True, False, True], [False, True, True]])})
    mask.save("mask.safetensors")
    (code,) = (block for block in blocks(DOCS / "guides" / "masks.md", "py") if "huggingface_hub" in block)
    names: dict[str, Any] = {"pathex": pathex, "model": model}
    exec(code, names)
    assert names["mask"] == mask
    assert hub.upload_file.call_args.kwargs["repo_id"] == hub.hf_hub_download.call_args.args[0]


WALK = DOCS / "guides" / "deployment.md"
SMALLER = {"--weights imagenet": "", "--epochs 20": "--epochs 1 --rounds 2 --batch-size 8", "224": "32"}
SMALLER |= {"'[1, 32]'": "1", "'[1, 2]'": "1 --rounds 1"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_the_way_from_a_folder_of_images_to_a_file_that_runs_alone(tmp_path, monkeypatch, capsys):
    """The commands of the guide, as they stand."""
    monkeypatch.chdir(tmp_path)
    for number, (part, label) in enumerate((p, c) for p in ("train", "test") for c in ("cat", "dog")):
        for image in range(12):
            write_image(tmp_path / "photos" / part / label / f"{image}.png", (60 * number, 10 * image, 99), (40, 40))
    folder, text = "", "\n".join(blocks(WALK, "sh"))
    for long, short in SMALLER.items():
        text = text.replace(long, short)
    for line in text.splitlines():
        assert main(shlex.split(line.replace("$folder", folder))[1:]) == 0, line
        said = capsys.readouterr().out.splitlines()
        folder = said[-1] if line.startswith("pathex run") else folder
    assert {"latency.csv", "layers.csv", "latency.png"} <= {path.name for path in Path("bench").iterdir()}
    pytest.importorskip("onnxruntime")
    Image.new("RGB", (50, 60), "red").save("photo.jpg")
    (code,) = blocks(WALK, "py")
    exec(compile(code, str(WALK), "exec"), {})
    assert re.fullmatch(r"cat|dog", capsys.readouterr().out.strip())
    assert pathex.load_run(folder).preprocessing.classes == ("cat", "dog")
