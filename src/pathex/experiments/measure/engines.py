"""What can run a network on a CPU, each as a function from images to outputs."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pathex.compaction import compact, export
from pathex.errors import PathexError
from pathex.graph import first_tensor
from pathex.masks import from_zeros
from pathex.sparse import compile as compile_sparse

Engine = Callable[[Tensor], Tensor]
Builder = Callable[[nn.Module, Tensor, int], Engine]
"""Called with a network in eval mode, images (N, C, H, W) like those that follow, and a number of threads."""


class Unavailable(PathexError):
    """An engine that is not installed here, or cannot run the network; the message says why."""


def _torch(model: nn.Module, images: Tensor, threads: int) -> Engine:
    return lambda x: first_tensor(model(x))


def _channels_last(model: nn.Module, images: Tensor, threads: int) -> Engine:
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return lambda x: first_tensor(turned(x.contiguous(memory_format=torch.channels_last)))


def _torch_compile(model: nn.Module, images: Tensor, threads: int) -> Engine:
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise Unavailable("no C++ compiler on this machine")
    compiled = torch.compile(copy.deepcopy(model))
    return lambda x: first_tensor(compiled(x))


def _onnxruntime(model: nn.Module, images: Tensor, threads: int) -> Engine:
    onnxruntime = _imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(_onnx(model, images), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _openvino(model: nn.Module, images: Tensor, threads: int) -> Engine:
    openvino = _imported("openvino")
    core = openvino.Core()
    read = core.read_model(_onnx(model, images))
    read.reshape(list(images.shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True)[0])


def _compact(model: nn.Module, images: Tensor, threads: int) -> Engine:
    return _torch(compact(model, from_zeros(model), images[:1]), images, threads)


def _sparse(model: nn.Module, images: Tensor, threads: int) -> Engine:
    return compile_sparse(model, example_input=images, threads=threads)


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


def _imported(name: str):  # type: ignore[no-untyped-def]
    try:
        return __import__(name)
    except ImportError:
        raise Unavailable(f"{name} is not installed") from None


def _onnx(model: nn.Module, images: Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export(model, path, images[:1])
        return path.read_bytes()
