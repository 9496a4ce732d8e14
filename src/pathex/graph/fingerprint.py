"""What tells networks apart whose graphs may differ: what a forward pass depends on but the values of weights."""

import dis
import functools
import hashlib
import io
import pickle
import sys
import types
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

_EMPTY = types.CellType()
_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_ASIDE = {*vars(nn.Module()), "_compiled_call_impl", "_flat_weight_refs"} - {"_parameters", "_buffers", "_modules"}


def fingerprint(model: nn.Module, inputs: Sequence[Any]) -> str:
    """Equal for networks of one structure and inputs of one form, for any number of images."""
    modules = list(model.modules())
    weights = list(dict.fromkeys([*model.parameters(), *model.buffers()]))
    own = {id(part): number for number, part in enumerate([*modules, *weights])}
    forms = [(x.dim(), x.shape[1:], x.dtype, x.device) if isinstance(x, Tensor) else x for x in inputs]
    try:
        return _digest([[_content(module) for module in modules], list(map(_form, weights)), forms], own, {})
    except Exception:  # such as references too deep to follow: told apart from all others
        return uuid.uuid4().hex


def _digest(parts: Any, own: Mapping[int, int], code: dict[int, tuple[Any, str]]) -> str:
    _Writer(file := io.BytesIO(), own, code).dump(parts)
    return hashlib.sha1(file.getvalue(), usedforsecurity=False).hexdigest()


class _Writer(pickle.Pickler):
    """Pickles containers and plain objects as ever, parts of the network as numbers, and code by what it does."""

    def __init__(self, file: io.BytesIO, own: Mapping[int, int], code: dict[int, tuple[Any, str]]) -> None:
        super().__init__(file, protocol=5)
        self._own, self._code = own, code

    def persistent_id(self, value: Any) -> Any:
        if type(value) is str:
            return sys.intern(value)  # equal ones may be one object or several
        return self._own.get(id(value))

    def reducer_override(self, value: Any) -> Any:
        if value is tuple:  # with which all of this is written
            return NotImplemented
        try:
            held = _held(value)
            if held is NotImplemented:
                held = value.__reduce_ex__(5)
                if isinstance(held, tuple):
                    return held
        except Exception:  # whatever those raise that are not for pickling: each is like itself alone
            held = _which(value)
        if isinstance(value, (types.FunctionType, type)):
            held = self._apart(value, held)
        # The parts are written after the object itself, which they may refer to.
        return tuple, (), (type(value).__name__, held)

    def _apart(self, value: Any, held: Any) -> str:
        """Code by itself: whether it shares an object with a network is nothing that a copy keeps."""
        if id(value) not in self._code:
            self._code[id(value)] = value, str(len(self._code))  # for what refers to itself
            self._code[id(value)] = value, _digest(held, self._own, self._code)
        return self._code[id(value)][1]


def _content(module: nn.Module) -> Any:
    state = {name: part for name, part in vars(module).items() if name not in _ASIDE}
    return type(module), state, [*module._forward_pre_hooks.values()], [*module._forward_hooks.values()]


def _form(tensor: Tensor) -> Any:
    return *tensor.shape, tensor.dtype, tensor.device


@functools.singledispatch
def _held(value: Any) -> Any:
    """What an object is beside what pickle knows of it."""
    return NotImplemented


@_held.register
def _(value: nn.Module) -> Any:
    return _content(value), value.training


@_held.register
def _(value: Tensor) -> Any:
    if type(value) not in (Tensor, nn.Parameter) or not value.numel():  # what a hook kept of a trace has no numbers
        return _form(value)
    data = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return _form(value), hashlib.sha1(data.numpy().tobytes(), usedforsecurity=False).hexdigest()


@_held.register
def _(value: types.FunctionType) -> Any:
    cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
    scope = {} if _is_installed(value.__globals__.get("__name__")) else value.__globals__
    outside = [scope[name] for name in _names_in(value.__code__)[0] if name in scope]
    for module in [part for part in outside if isinstance(part, types.ModuleType) and not _is_installed(part.__name__)]:
        outside += [vars(module)[name] for name in _names_in(value.__code__)[1] if name in vars(module)]
    return value.__code__, value.__defaults__, value.__kwdefaults__, cells, outside


@_held.register
def _(value: type) -> Any:
    entries = [
        (name, entry) for kind in value.__mro__ for name, entry in vars(kind).items() if _acts(kind, name, entry)
    ]
    return value.__module__, value.__qualname__, entries


def _acts(kind: type, name: str, entry: Any) -> bool:
    """Whether an entry of a class may change what its objects do: of installed classes what others put there."""
    if name == "__init__" and issubclass(kind, nn.Module):  # which shows in what modules hold
        return False
    if _is_installed(kind.__module__):
        return isinstance(entry, types.FunctionType) and not _is_installed(entry.__module__)
    functions = (types.FunctionType, staticmethod, classmethod, property)
    return isinstance(entry, functions) or not name.startswith(("__", "_abc_"))


_PARTS: dict[type, Callable[[Any], Any]] = {
    types.CodeType: attrgetter("co_code", "co_names", "co_consts"),
    property: attrgetter("fget"),
    staticmethod: attrgetter("__func__"),
    classmethod: attrgetter("__func__"),
    functools.cached_property: attrgetter("func"),
    type(functools.lru_cache(bool)): attrgetter("__wrapped__"),
    weakref.ref: lambda value: value(),
    types.ModuleType: attrgetter("__name__"),
    torch._ops.OpOverload: str,
    torch._ops.OpOverloadPacket: str,
    fx.Graph: lambda value: None,  # the code of its module's class says it
    RemovableHandle: lambda value: None,  # the hooks are there
    torch.optim.Optimizer: lambda value: None,  # trains the network, and is no part of it
    torch.Generator: lambda value: None,
}
for _kind, _parts in _PARTS.items():
    _held.register(_kind, _parts)


def _which(value: Any) -> str:
    """What tells an object apart from all others, also from a later one in its place."""
    try:
        return _names.setdefault(value, uuid.uuid4().hex)
    except TypeError:  # a function of C++, which stays
        return str(id(value))


@functools.lru_cache(4096)
def _is_installed(module: str | None) -> bool:
    """Whether a module is of Python or of a package that is installed, whose code stays as it is."""
    name = (module or "").partition(".")[0]
    parts = Path(getattr(sys.modules.get(name), "__file__", None) or "").parts
    return name in sys.stdlib_module_names or not {"site-packages", "dist-packages"}.isdisjoint(parts)


@functools.lru_cache(4096)
def _names_in(code: types.CodeType) -> tuple[list[str], list[str]]:
    """The names that code, and code in it, looks up outside of functions, and all others."""
    steps = [step for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [_names_in(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    outside = [step.argval for step in steps] + [name for names, _ in inner for name in names]
    return list(dict.fromkeys(outside)), [*code.co_names, *(name for _, names in inner for name in names)]
