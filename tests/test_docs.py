"""What the documentation says is so: code runs, commands parse, generated parts are fresh, links lead somewhere."""

import dataclasses
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import pathex
from pathex.cli import main
from pathex.masks import prunable_weights
from pathex.scores import Problem
from pathex.tasks import task
from small_images import write_image

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
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
    wrap(pathex, "prune", lambda original, *args, **kwargs: original(*args, **{"rounds": 2, **kwargs}))


@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
@named([page for page in PAGES if page.name != "CONTRIBUTING.md" and blocks(page, "python")])
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


def test_tables_of_methods_are_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "make_docs.py"))
    for page, link in made["LINKS"].items():
        text = page.read_text(encoding="utf-8")
        assert text == made["renewed"](text, link), "run python scripts/make_docs.py"
    with pytest.raises(ValueError, match="lacks the marks"):
        made["renewed"]("# pathex\n", "methods")


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
