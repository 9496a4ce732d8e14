"""Files: one reader of those that are not ours to trust, one writer of those that must last."""

from pathex.files.reading import MOST_CLASSES, open_image, parse_json, read
from pathex.files.seals import SEAL, changed, digest, seal
from pathex.files.tensors import check_claim, metadata_of, read_file, read_npz, read_safetensors, read_torch
from pathex.files.writing import (
    appending,
    replacing,
    write_bytes,
    write_json,
    write_lines,
    write_safetensors,
    write_torch,
)

__all__ = [
    "MOST_CLASSES", "SEAL", "appending", "changed", "check_claim", "digest", "metadata_of", "open_image", "parse_json",
    "read", "read_file", "read_npz", "read_safetensors", "read_torch", "replacing", "seal", "write_bytes", "write_json",
    "write_lines", "write_safetensors", "write_torch",
]  # fmt: skip
