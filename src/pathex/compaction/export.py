"""A network as a file for another program."""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pathex.compaction.trial import difference
from pathex.errors import InvalidInput, UnknownName, UnsupportedOperation, refusing
from pathex.files import replacing, write_bytes
from pathex.graph import copied, first_tensor

FORMATS: Mapping[str, str] = MappingProxyType({"onnx": ".onnx", "pt2": ".pt2"})
"""Formats of `export`, each with the ending of its files."""

_TOLERANCE = 1e-4
"""Of outputs, relative to the largest: float32 sums in another order."""


def export(model: nn.Module, path: str | Path, example_input: Tensor) -> None:
    """Write a network as ONNX or as PyTorch's exported program, for any number of images.

    What is written is run on one image and on three and compared with the network before the file takes its place:
    ONNX by onnxruntime. What ``model.preprocessing`` says (see `pathex.load_run`) is in the file as JSON: in the
    metadata ``preprocessing`` of ONNX, in the extra file ``preprocessing.json`` of an exported program.

    Args:
        model: The network; it is written in eval mode, on the CPU, and left as it was.
        path: The file; its ending, ``.onnx`` or ``.pt2``, is the format.
        example_input: Images (N, C, H, W); their height and width are those of the program.

    Raises:
        InvalidInput: If a package is missing, the network fails on the images, or the file cannot be written.
        UnknownName: If the ending is not that of a format.
        UnsupportedOperation: If the exporter refuses the network, or what is written gives other outputs or does not
            take every number of images.
    """
    path = Path(path)
    if path.suffix not in FORMATS.values():
        raise UnknownName("ending of an exported file:", path.suffix, FORMATS.values())
    if not isinstance(example_input, Tensor) or not example_input.dim() or not len(example_input):
        raise InvalidInput("example_input must be a tensor (N, ...) with one image or more")
    network = copied(model).cpu().eval()
    example = example_input.detach().cpu()
    three = torch.cat([example[:1]] * 3)
    three = three + torch.randn(three.shape, generator=torch.Generator().manual_seed(0)).to(three)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        with refusing(f"{type(model).__name__} cannot be exported: {{}}", raising=UnsupportedOperation):
            program = torch.export.export(network, (three,), dynamic_shapes=({0: Dim.AUTO},), strict=False)
        about = _about(getattr(model, "preprocessing", None))
        with refusing(f"cannot write {str(path)!r}: {{}}", OSError), replacing(path) as temporary:
            written = (_write_onnx if path.suffix == ".onnx" else _write_pt2)(program, temporary, about)
            _compare(network, three, written)


def _about(preprocessing: Any) -> dict[str, str]:
    return {"preprocessing": json.dumps(asdict(preprocessing))} if is_dataclass(preprocessing) else {}  # type: ignore[arg-type]


def _write_onnx(program: ExportedProgram, path: Path, about: dict[str, str]) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InvalidInput(f"ONNX needs the package {error.name}: pip install 'pathex[onnx]'") from error
    with refusing("the network cannot be written as ONNX: {}", raising=UnsupportedOperation):
        written = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"])
    assert written is not None
    written.model.metadata_props.update(about)
    written.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is told by an exception too
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _write_pt2(program: ExportedProgram, path: Path, about: dict[str, str]) -> Callable[[Tensor], Tensor]:
    written = io.BytesIO()
    torch.export.save(program, written, extra_files={f"{name}.json": text for name, text in about.items()})
    write_bytes(path, written.getvalue())
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda images: first_tensor(module(images))


@torch.inference_mode()
def _compare(network: nn.Module, three: Tensor, written: Callable[[Tensor], Tensor]) -> None:
    fixed = (
        f"what was written does not take every number of images; does {type(network).__name__} ask for it by len(x), "
        "which fixes it, and not by x.shape[0]? ({})"
    )
    for images in (three[:1], three):
        with refusing(f"{type(network).__name__} fails on images of {images.dtype}: {{}}"):
            expected = first_tensor(network(images))
        with refusing(fixed, raising=UnsupportedOperation):
            found = written(images)
        wrong = difference(found, expected, small=1e-30)
        if wrong > _TOLERANCE:
            raise UnsupportedOperation(
                f"what was written gives other outputs for {len(images)} images: off by {wrong:.1e} of the largest"
            )
