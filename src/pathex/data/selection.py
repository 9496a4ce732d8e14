"""Which images: the pruning set, validation images cut from training; and which classes, split into tasks maybe."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathex.data.images import ImageData
from pathex.errors import InvalidInput, check_integer
from pathex.files import read

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class PruningSet:
    """The images that scores see.

    Attributes:
        images: Normalised images without augmentation, float32 (N, C, H, W).
        labels: Classes, int64 (N,).
        indices: Numbers of the images among the training images.
        hash: SHA-256 of indices, image bytes (before normalising) and labels, hexadecimal.
    """

    images: Tensor
    labels: Tensor
    indices: list[int]
    hash: str


def pruning_set(data: ImageData, images_per_class: int, seed: int, indices_from: Tensor | None = None) -> PruningSet:
    """Draw the same number of training images from each class, in random order, on the CPU.

    Args:
        data: Where they are drawn from.
        images_per_class: At least 1.
        seed: Seed of the draw, which neither reads nor moves the global generator.
        indices_from: Training images that may be drawn, int64 (M,), in any order; None is all of them.

    Returns:
        The pruning set.

    Raises:
        InvalidInput: If a class has too few images, or an argument cannot be used.
    """
    check_integer("images_per_class", images_per_class)
    generator = seeded(seed)
    labels = data.train.labels
    allowed = torch.arange(len(labels)) if indices_from is None else indices_from.unique()
    if len(allowed) and not 0 <= int(allowed[0]) <= int(allowed[-1]) < len(labels):
        raise InvalidInput(f"indices_from must lie in 0..{len(labels) - 1}, got {int(allowed[0])}..{int(allowed[-1])}")
    drawn = []
    for number in range(data.num_classes):
        members = allowed[labels[allowed] == number]
        if len(members) < images_per_class:
            raise InvalidInput(
                f"images_per_class={images_per_class}: class {data.classes[number]!r} of {data.name!r} has only"
                f" {len(members)} training images to draw from"
            )
        drawn.append(members[torch.randperm(len(members), generator=generator)[:images_per_class]])
    # Batches in class order would bias scorers that are defined on batch statistics.
    indices = torch.cat(drawn)[torch.randperm(images_per_class * data.num_classes, generator=generator)]
    images = data.train.images(indices).cpu()
    digest = content_hash(indices, images, labels[indices])
    return PruningSet(data.normalise(images), labels[indices], indices.tolist(), digest)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for a draw."""
    check_integer("seed", seed, 0, 2**63 - 1)
    return torch.Generator().manual_seed(seed)


def content_hash(*parts: Tensor) -> str:
    """SHA-256 of the bytes of tensors, hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def validation_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Cut validation images from training images, with the classes in proportion.

    Args:
        labels: Class of each image, int64 (N,).
        fraction: Share of validation images, in [0, 1). They are ``round(fraction * N)``, rounded within classes by the
            largest remainder; each class keeps at least one training image.
        seed: Seed of the draw, which has a generator of its own.

    Returns:
        Numbers of the training images and of the validation images, int64, rising.

    Raises:
        InvalidInput: If the fraction is out of range, or so small that no image is left for validation.
    """
    if not 0 <= fraction < 1:
        raise InvalidInput(f"validation (or test) must be a fraction in [0, 1), got {fraction!r}")
    generator = seeded(seed)
    sizes = torch.bincount(labels)
    exact = sizes.double() * fraction
    quotas = exact.floor().long()
    missing = round(fraction * len(labels)) - int(quotas.sum())
    quotas[(quotas - exact).argsort(stable=True)[:missing]] += 1
    quotas = quotas.minimum((sizes - 1).clamp(min=0))
    if fraction > 0 and not quotas.any():
        raise InvalidInput(
            f"validation (or test) fraction {fraction}: no image of {len(labels)} in {len(sizes)} classes is held out"
        )
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for number, quota in enumerate(quotas.tolist()):
        members = (labels == number).nonzero().flatten()
        held_out[members[torch.randperm(len(members), generator=generator)[:quota]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def task_splits(num_classes: int, tasks: int, seed: int = 0) -> list[list[int]]:
    """Split classes into tasks at random; the draw neither reads nor moves the global generator.

    Returns:
        For each task ``num_classes // tasks`` classes in rising order; no class is in two tasks, and what is left over
        is in none. Numbers that cannot be used raise `pathex.errors.InvalidInput`.

    Examples:
        >>> task_splits(7, 3, seed=0)
        [[0, 4], [3, 5], [2, 6]]
    """
    check_integer("num_classes", num_classes)
    check_integer("option 'tasks'", tasks, 1, num_classes)
    check_integer("option 'task_seed'", seed, 0, 2**63 - 1)
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed)).tolist()
    size = num_classes // tasks
    return [sorted(order[task * size : (task + 1) * size]) for task in range(tasks)]


def choose_classes(
    names: Sequence[str],
    *,
    classes: Any = None,
    tasks: int | None = None,
    task: int | None = None,
    task_seed: int | None = None,
) -> list[int]:
    """Numbers of the classes that a data set is restricted to, in the order of their new labels; see ``load``."""
    entries: list[Any] = list(range(len(names))) if classes is None else _entries(classes)
    if all(isinstance(entry, list | tuple) for entry in entries):
        if tasks is not None or task_seed is not None:
            raise InvalidInput("options 'tasks' and 'task_seed' do not go with 'classes' that are split into tasks")
        return _numbers(entries[check_integer("option 'task'", task, 0, len(entries) - 1)], names)
    chosen = _numbers(entries, names)
    if tasks is not None:
        groups = task_splits(len(chosen), tasks, 0 if task_seed is None else task_seed)
        return [chosen[place] for place in groups[check_integer("option 'task'", task, 0, tasks - 1)]]
    if task is not None or task_seed is not None:
        raise InvalidInput("options 'task' and 'task_seed' need option 'tasks', or 'classes' with a list for each")
    return chosen


def _entries(classes: Any) -> list[Any]:
    if isinstance(classes, str | Path):
        classes = _read(Path(classes).expanduser())
    if not isinstance(classes, list | tuple):
        kind = type(classes).__name__
        raise InvalidInput(f"option 'classes' must be a list of class numbers or names, or a file of one, got {kind}")
    if not classes:
        raise InvalidInput("option 'classes' must name at least one class, got none")
    return list(classes)


def _read(file: Path) -> Any:
    content = read(file, f"option 'classes': {str(file)!r}")
    return [line.strip() for line in content.splitlines() if line.strip()] if isinstance(content, str) else content


def _numbers(entries: Sequence[Any], names: Sequence[str]) -> list[int]:
    chosen = [_number(entry, names) for entry in entries]
    twice = [number for number, times in Counter(chosen).items() if times > 1]
    if twice:
        raise InvalidInput(f"option 'classes' names class {names[twice[0]]!r} twice")
    return chosen


def _number(entry: Any, names: Sequence[str]) -> int:
    if isinstance(entry, str) and entry in names:
        return names.index(entry)
    if isinstance(entry, str) and entry.isdecimal():
        entry = int(entry)
    if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(names):
        return entry
    shown = ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])
    raise InvalidInput(f"option 'classes': no class {entry!r}. Known: 0..{len(names) - 1} or {shown}")
