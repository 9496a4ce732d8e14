"""Texts, tables and images that somebody else may have written: bounded in size and depth, and never waited for."""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pathex.errors import InvalidInput, refusing
from pathex.files.seals import MARK, check_seal

if TYPE_CHECKING:
    from PIL import Image

MOST_CLASSES = 1_000_000
"""More than any data set has."""

_MIB = 2**20
_LARGEST = {"YAML": _MIB // 4, "JSON": 32 * _MIB, "text": 32 * _MIB}
_MOST_VALUES, _MOST_CONTAINERS, _DEEPEST = 20_000, 1_000_000, 100
_LONG_NUMBER = re.compile("[0-9]{101}")
_MOST_PIXELS, _MOST_RATIO = 89_478_485, 100  # the first is where Pillow begins to warn


def check_file(path: str | os.PathLike[str]) -> int:
    """The size of a regular file; `OSError` for one that is not there, `InvalidInput` for pipes, devices, folders."""
    about = Path(path).stat()
    if not stat.S_ISREG(about.st_mode):
        raise InvalidInput("it is no regular file")
    return about.st_size


def read(path: Path, what: str = "", advice: str = "", kind: str = "", holds: type = object) -> Any:
    """What JSON, JSON lines, YAML or, as a string, other text says, by ending or ``kind``; else `InvalidInput`."""
    kind = kind or path.suffix
    name = {".json": "JSON", ".jsonl": "JSON", ".yaml": "YAML", ".yml": "YAML"}.get(kind, "text")
    with refusing(f"{what or repr(str(path))} cannot be read ({{}}){advice}"):
        if check_file(path) > _LARGEST[name]:
            raise InvalidInput(f"it has more than the {_LARGEST[name]:,} bytes allowed for {name}")
        data = path.read_bytes()
        check_seal(data)
        text = data.decode("utf-8-sig")
        if kind == ".jsonl":
            return [parse_json(line) for line in text.splitlines() if line.strip()]
        content = parse_json(text) if name == "JSON" else _yaml(text) if name == "YAML" else text
        if not isinstance(content, holds):
            raise InvalidInput("it holds no object: names with values")
    if isinstance(content, dict) and str(content.get("sha256")).startswith(MARK.decode()):
        del content["sha256"]
    return content


def parse_json(text: str) -> Any:
    """What JSON says; `InvalidInput` for a key that is there twice, too many levels or digits; `ValueError` else."""
    if _LONG_NUMBER.search(text):
        raise InvalidInput("a number has more than 100 digits")
    content = json.loads(text, object_pairs_hook=_once)
    containers(content)
    return content


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidInput(f"key {Counter(name for name, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return found


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        values = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.values += 1
            if self.values > _MOST_VALUES:
                raise InvalidInput(f"it holds more than {_MOST_VALUES:,} values, which are allowed for YAML")
            node = super().compose_node(parent, index)
            if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > 100:
                raise InvalidInput("a number has more than 100 digits")
            if isinstance(node, yaml.MappingNode):
                _once([(key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)])
                if any(key.value == "<<" and isinstance(value, yaml.SequenceNode) for key, value in node.value):
                    raise InvalidInput("several mappings are merged into one, which may grow without bounds")
            return node

    content = yaml.load(text, Loader)
    containers(content)
    return content


def containers(content: Any) -> list[Any]:
    """Every mapping and list in plain data, by levels; `InvalidInput` if there are too many, what is shared counted."""
    kinds = (Mapping, list, tuple)
    level, count, found = [(content, 1)] if isinstance(content, kinds) else [], 0, []
    for _ in range(_DEEPEST):
        below: dict[int, tuple[Any, int]] = {}
        for each, times in level:
            found.append(each)
            for child in each.values() if isinstance(each, Mapping) else each:
                if isinstance(child, kinds):
                    below[id(child)] = child, below.get(id(child), (child, 0))[1] + times
        level = list(below.values())
        count += sum(times for _, times in level)
        if count > _MOST_CONTAINERS:
            raise InvalidInput(f"it holds more than {_MOST_CONTAINERS:,} lists and mappings")
    if level:
        raise InvalidInput(f"it is nested deeper than {_DEEPEST} levels")
    return found


def open_image(source: str | IO[bytes]) -> "Image.Image":
    """Open an image, whose pixels are read when they are first used; `InvalidInput` for too many or too far apart."""
    from PIL import Image

    if isinstance(source, str):
        check_file(source)
    image = Image.open(source)
    width, height = image.size
    if width * height > _MOST_PIXELS or max(width, height) > _MOST_RATIO * min(width, height):
        image.close()
        allowed = f"at most {_MOST_PIXELS:,} of them, and sides of at most 1:{_MOST_RATIO}"
        raise InvalidInput(f"it has {width} x {height} pixels; allowed: {allowed}")
    return image
