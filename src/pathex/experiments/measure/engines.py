"""What can run a network on a CPU, each as a function from images to outputs."""

import importlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pathex.compaction import compact, export
from pathex.errors import PathexError
from pathex.graph import copied, first_tensor
from pathex.masks import from_zeros
from pathex.sparse import compile as compile_sparse

Engine = Callable[[Tensor], Tensor]


class Unavailable(PathexError):
    """An engine that is not installed here, or cannot run the network; the message says why."""


class Subject:
    """A network that is measured, with what several engines make of it.

    Attributes:
        model: The network, float32 on the CPU, in eval mode; zeros where its mask removes.
        example: One image (1, C, H, W).
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model, self.example = model.eval(), example

    @cached_property
    def onnx(self) -> bytes:
        """It as ONNX."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            export(self.model, path, self.example)
            return path.read_bytes()

    @cached_property
    def small(self) -> nn.Module:
        """It without the channels that its mask leaves without use."""
        return compact(self.model, from_zeros(self.model), self.example)


Builder = Callable[[Subject, Tensor, int], Engine]
"""Called with images (N, C, H, W) like those that follow, and a number of threads."""


def _torch(subject: Subject, images: Tensor, threads: int) -> Engine:
    return lambda x: first_tensor(subject.model(x))


def _channels_last(subject: Subject, images: Tensor, threads: int) -> Engine:
    turned = copied(subject.model).to(memory_format=torch.channels_last)
    return lambda x: first_tensor(turned(x.contiguous(memory_format=torch.channels_last)))


def _torch_compile(subject: Subject, images: Tensor, threads: int) -> Engine:
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise Unavailable("no C++ compiler on this machine")
    compiled = torch.compile(copied(subject.model))
    return lambda x: first_tensor(compiled(x))


def _onnxruntime(subject: Subject, images: Tensor, threads: int) -> Engine:
    onnxruntime = _imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(subject.onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _openvino(subject: Subject, images: Tensor, threads: int) -> Engine:
    openvino = _imported("openvino")
    core = openvino.Core()
    read = core.read_model(subject.onnx)
    read.reshape(list(images.shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True)[0])


def _compact(subject: Subject, images: Tensor, threads: int) -> Engine:
    small = subject.small
    return lambda x: first_tensor(small(x))


def _sparse(subject: Subject, images: Tensor, threads: int) -> Engine:
    return compile_sparse(subject.model, example_input=images, threads=threads)


ENGINES: Mapping[str, Builder] = MappingProxyType(
    {
        "torch": _torch,
        "torch, channels last": _channels_last,
        "torch.compile": _torch_compile,
        "onnxruntime": _onnxruntime,
        "openvino": _openvino,
        "compact": _compact,
        "sparse": _sparse,
    }
)
"""By name: the first five compute every weight, the last two what the mask leaves."""

DENSE = ("torch", "torch, channels last", "onnxruntime", "openvino")
"""What a network without a mask is compared with: ``torch.compile`` is not everywhere."""


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unavailable(f"{name} is not installed") from None
