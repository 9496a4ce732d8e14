"""Files: one reader of those that are not ours to trust, one writer of those that must last."""

from pathex.files.reading import MOST_CLASSES, open_image, parse_json, read
from pathex.files.seals import SEAL, changed, digest, seal
from pathex.files.tensors import (
    check_claim,
    read_checkpoint,
    read_file,
    read_npz,
    read_safetensors,
    safetensors_metadata,
)  # fmt: skip
from pathex.files.writing import (
    appending,
    replacing,
    write_bytes,
    write_checkpoint,
    write_json,
    write_lines,
    write_safetensors,
)  # fmt: skip

__all__ = [
    "MOST_CLASSES", "SEAL", "appending", "changed", "check_claim", "digest", "open_image", "parse_json",
    "read", "read_checkpoint", "read_file", "read_npz", "read_safetensors", "replacing",
    "safetensors_metadata", "seal", "write_bytes", "write_checkpoint", "write_json", "write_lines",
    "write_safetensors",
]  # fmt: skip
