"""The rooms of the package: imports go one way, through faces, and what is public is written down."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import pathex

SOURCE = Path(pathex.__file__).parent
INTERFACE = Path(__file__).parent / "public_interface.txt"
ORDER = (
    ("errors",),
    ("files",),
    ("figures",),
    ("distributed", "masks", "graph"),
    ("paths", "models", "data", "compaction"),
    ("sparse",),
    ("scores",),
    ("analysis", "ntk"),
    ("pruning",),
    ("train",),
    ("tasks",),
    ("experiments.report",),  # reads run folders
    ("experiments.measure",),
    ("experiments.runs",),
    ("experiments.sweep",),
    ("cli",),
)
LEVEL = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
# Between rooms of one level, and to names rather than to what reads them.
ALSO = {("masks", "distributed"), ("models", "masks"), ("experiments.report", "experiments.runs")}
LONGEST = 400


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield ".".join(("pathex", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"), path


def room_of(module: str) -> str:
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[:1] == ["experiments"] else ".".join(parts[:1])


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Modules of pathex that a file imports from, wherever in it, and the names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pathex":
            for alias in node.names:
                is_room = node.module == "pathex" and alias.name in pathex.__all__ and alias.name in LEVEL
                yield (f"pathex.{alias.name}", "*") if is_room else (str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "*") for alias in node.names if alias.name.startswith("pathex."))


def test_imports_go_one_way_and_through_faces() -> None:
    wrong = []
    for module, path in modules():
        own = room_of(module)
        if not own or own in {"__main__", "experiments"}:
            continue
        for source, name in imports(path):
            room = room_of(source)
            if not room or room == own:
                continue
            if LEVEL[room] >= LEVEL[own] and (own, room) not in ALSO:
                wrong.append(f"{module} imports {source}: {room} is above")
            named = importlib.import_module(f"pathex.{room}").__all__
            if source != f"pathex.{room}" or name not in (*named, "*"):
                wrong.append(f"{module} reaches into {source} for {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_stands_loose_and_no_file_is_long() -> None:
    assert {path.name for path in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
    assert not {m for m, _ in modules() if m.rpartition(".")[2].startswith("_") and not m.endswith("__")}
    lengths = {m: len(path.read_text(encoding="utf-8").splitlines()) for m, path in modules()}
    assert {m: n for m, n in lengths.items() if n > LONGEST} == {}


ONCE = {
    "writing": r"\.write_(text|bytes)\(|open\([^)\n]*\"([awx]b?|r\+|rb\+)\"|O_WRONLY|(?m:^(?! *\.\.\.).*torch\.save\()",
    "tensors": r"torch\.load\(|safe_open\(|load_file\(|np\.load\(",
    "texts": r"yaml\.(safe_)?load\(|json\.loads?\(|\.read_text\((?!.*errors=)",
    "images": r"Image\.open\(",
}


@pytest.mark.parametrize("what", ONCE)
def test_files_are_opened_in_one_place(what: str) -> None:
    found = {module for module, path in modules() if re.search(ONCE[what], path.read_text(encoding="utf-8"))}
    home = {"writing": "writing", "tensors": "tensors"}.get(what, "reading")
    assert found == {f"pathex.files.{home}"}


def public_interface() -> Iterator[str]:
    """A line for every public name: of functions with their arguments, of classes with those of their methods."""
    for room in ("", *sorted({"experiments.runs", "experiments.sweep", *LEVEL} - {"cli"})):
        module = importlib.import_module(f"pathex.{room}".rstrip("."))
        for name in sorted(module.__all__):
            found = getattr(module, name)
            full = f"{module.__name__}.{name}"
            if inspect.isclass(found):
                yield f"{full}{signature(found)}"
                members = sorted(n for n in vars(found) if not n.startswith("_"))
                yield from (f"{full}.{n}{signature(getattr(found, n))}" for n in members)
            else:
                yield f"{full}{signature(found)}" if inspect.isfunction(found) else full


def signature(found: object) -> str:
    """Names of the arguments, with a star where they are keywords; nothing for what cannot be called."""
    if not callable(found):
        return ""
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        return ""
    shown, keywords = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            shown.append("*")
        keywords |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        shown.append(f"{stars}{parameter.name}{'' if parameter.default is parameter.empty else '='}")
    return f"({', '.join(shown)})"


def test_the_public_interface_is_the_one_that_was_written_down() -> None:
    found = "\n".join(public_interface()) + "\n"
    if "PATHEX_WRITE_INTERFACE" in os.environ:
        INTERFACE.write_text(found, encoding="utf-8")
    assert found == INTERFACE.read_text(encoding="utf-8"), "if this is meant: PATHEX_WRITE_INTERFACE=1, and a changelog"


@pytest.mark.parametrize("old", sorted(pathex._MOVED))
def test_old_import_paths_work_with_a_warning(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now "):
        module = importlib.import_module(old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert importlib.import_module(old) is module


def test_what_the_guides_of_the_first_version_imported_is_there() -> None:
    code = """
from pathex.counts import count
from pathex.matching import matching_width
from pathex.mask_files import read_allocation, read_mask, write_mask
from pathex.sweep import SweepConfig, plan
from pathex import ablations, converters, dynamic
import pathex
pathex.report.build, converters.from_zeros, ablations.shuffled, dynamic.attach
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
