"""What a run was made from beside its settings: the code and the files that they name, and whether these changed."""

import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pathex import models, scores
from pathex.data import fingerprint
from pathex.errors import InvalidInput, import_callable
from pathex.experiments.runs.config import RunConfig, settings
from pathex.experiments.runs.folder import damage, read_config, read_json
from pathex.experiments.runs.stages import TRAINED
from pathex.experiments.runs.tickets import DENSE

INPUTS = "inputs.json"


def inputs(config: RunConfig, mark: Callable[[Path], str] = fingerprint) -> dict[str, str]:
    """A fingerprint of each file and folder, and of each module of the user's, that the settings name."""
    values, found = settings(config), {}
    named = {name: values[name] for name in ("data", "weights", "start_mask", "allocation")}
    for group in (name for name in values if name.endswith("_options")):
        named |= {f"{group}.{name}": value for name, value in values[group].items()}
    for name, text in named.items():
        for place in (text, text.partition(":")[2]) if isinstance(text, str) else ():
            with suppress(OSError, RuntimeError):  # a text that can be no path
                path = Path(place).expanduser()
                if path.is_file() or (name == "data" and ":" in text and place and path.is_dir()):
                    found[f"{name} {text!r}"] = mark(path)
    for module in sorted(_modules(config)):
        file = getattr(sys.modules.get(module), "__file__", None)
        if file and module.partition(".")[0] != "pathex":
            found[f"module {module!r}"] = mark(Path(file))
    return found


def _modules(config: RunConfig) -> set[str]:
    """Modules of the scorer and of the model's factory: those that are named, and those that define them."""
    code = {}
    if config.method not in (*DENSE, *TRAINED):
        code[config.method] = scores.resolve(config.method)
    if models.is_foreign(config.model):
        code[config.model] = import_callable("model", config.model)
    return {name.partition(":")[0] for name in code if ":" in name} | {
        str(getattr(one, "__module__", "")) for one in code.values()
    }


def changes(folder: Path, config: RunConfig, mark: Callable[[Path], str] = fingerprint) -> list[str]:
    """What tells the run in a folder from the one that the settings ask for now."""
    if not any((folder / name).exists() for name in ("config.yaml", "result.json")):
        return []
    try:
        if damaged := damage(folder):
            return damaged
        theirs = settings(read_config(folder))
    except InvalidInput as error:
        return [str(error)]
    ours = settings(config)
    different = [f"{name} {theirs[name]!r} there, {ours[name]!r} here" for name in ours if ours[name] != theirs[name]]
    if (folder / INPUTS).exists():
        then, now = read_json(folder / INPUTS), inputs(config, mark)
        different += [f"{name} changed since" for name in now if now[name] != then.get(name, now[name])]
    return different


def check_same(folder: Path, config: RunConfig, mark: Callable[[Path], str] = fingerprint) -> None:
    """Refuse a folder whose run had other settings (as after a change of the defaults), code or files."""
    if different := changes(folder, config, mark):
        raise InvalidInput(
            f"{folder} holds a run with other settings, inputs or files ({'; '.join(different)}); --fresh (in a sweep"
            " --settings.fresh true) begins it anew, or choose another 'out'"
        )


def clear(folder: Path) -> None:
    """Delete what a run wrote, its result first, so that no other process takes what is left for a finished run."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name != "result.json"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
