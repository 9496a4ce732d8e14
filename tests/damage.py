"""Damage to files and folders."""

import shutil


def spoil(path, content):
    """Delete a file or folder (None), take bytes from the end of a file (a number), or write text or bytes into it."""
    if content is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif isinstance(content, int):
        path.write_bytes(path.read_bytes()[:-content])
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
