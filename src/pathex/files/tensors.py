"""Files of tensors, read without running code, after what they claim to hold was compared with their size."""

import argparse
import mmap
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathex.errors import InvalidInput, reason, refusing
from pathex.files.reading import check_file, containers, parse_json
from pathex.files.seals import MARK, check_seal

if TYPE_CHECKING:
    from torch import Tensor

_ROOM, _MOST_TIMES = 2**30, 100


def check_claim(what: str, claimed: int, size: int) -> None:
    """Refuse more bytes than a file of a size (in bytes) can be meant to hold, however well it is packed."""
    if claimed > (most := _ROOM + _MOST_TIMES * size):
        raise InvalidInput(f"{what} claims {claimed:.3g} bytes; allowed in a file of {size:,} bytes: {most:,}")


def read_file(path: Path) -> object:
    """What a weight file holds, tensors on the CPU; only tensors, numbers, texts and containers of them are read."""
    what = f"weights file {str(path)!r}"
    if not path.is_file():
        raise InvalidInput(f"{what} {'is no regular file' if path.exists() else 'does not exist'}")
    kind = path.suffix.removeprefix(".") if path.suffix in {".safetensors", ".npz"} else "torch"
    try:
        return {"safetensors": _safetensors, "npz": _npz, "torch": _torch}[kind](path)
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            f"{what} is no torch file of tensors only, and pickles that could run code are not"
            " loaded: save model.state_dict() or a safetensors file"
        ) from error
    except Exception as error:  # damage reaches both libraries as errors of many kinds
        if "TorchScript archive" in str(error):
            raise InvalidInput(
                f"{what} is a TorchScript archive, which holds code and is not loaded: where you"
                " trust it, save torch.jit.load(FILE).state_dict() as a file of its own"
            ) from error
        raise InvalidInput(f"{what} is no readable {kind} file: {reason(error)}") from error


def read_torch(path: Path, advice: str = "") -> Any:
    """What `write_torch` wrote, tensors on the CPU; `InvalidInput` for a file that is damaged."""
    with refusing(f"checkpoint {path} cannot be read ({{}}){advice}"):
        return _torch(path)


def _torch(path: Path) -> Any:
    import torch

    size = check_file(path)
    if zipfile.is_zipfile(path):
        _check_archive(path)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            check_seal(data)
    # Checkpoints of training scripts hold their arguments; a Namespace is no more than names with values.
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.simplefilter("ignore")  # torch warns of what it then refuses
        content = torch.load(path, map_location="cpu", weights_only=True)
    claimed = 0
    for each in containers(content):
        for name, value in each.items() if isinstance(each, Mapping) else enumerate(each):
            if isinstance(value, torch.Tensor):
                if value.is_meta or value.is_nested or value.is_quantized or value.is_mkldnn:
                    raise InvalidInput(f"{name!r} is a tensor without values, nested, quantised or packed")
                claimed += value.numel() * value.element_size()
                check_claim(f"{name!r}", claimed, size)
    return content


def read_safetensors(path: Path, key: str = "") -> tuple[dict[str, "Tensor"], Any]:
    """The tensors of a safetensors file, as it was sealed if it was, and what the JSON in its metadata says."""
    with refusing(f"{path} is not a readable safetensors file: {{}}"):
        return _safetensors(path), parse_json(metadata_of(path).get(key, "null"))


def _safetensors(path: Path) -> dict[str, "Tensor"]:
    from safetensors.torch import load_file

    check_file(path)
    if any(MARK.decode() in text for text in metadata_of(path).values()):
        check_seal(path.read_bytes())
    return load_file(path)  # the library compares shapes and places with the size of the file


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file; none of another one."""
    from safetensors import SafetensorError, safe_open

    try:
        check_file(path)
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}


def _npz(path: Path) -> dict[str, Any]:
    import torch

    arrays = read_npz(path).items()
    return {name: torch.from_numpy(array) if array.dtype.kind in "biuf" else array for name, array in arrays}


def read_npz(path: Path, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The arrays of an npz archive, all or those of some names, without pickles."""
    import numpy as np

    _check_archive(path)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in (names or arrays.files) if name in arrays.files}


def _check_archive(path: Path) -> None:
    size = check_file(path)
    with zipfile.ZipFile(path) as archive:
        check_claim("the archive", sum(part.file_size for part in archive.infolist()), size)
