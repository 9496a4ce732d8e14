"""Kill a run twice and compare it with an unbroken one, bit for bit (CPU).

    python scripts/check_kill.py --data npz:cifar10.npz --epochs 2

Starts ``pathex run`` (px, sparsity 0.982, ResNet-20) once to its end; then again in another folder, killed with SIGKILL
in the middle of pruning and in the middle of the second epoch, and started again. Prints both results and what differs
in the last checkpoints, and exits 1 if anything but times does.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def start(args: argparse.Namespace, out: Path) -> "subprocess.Popen[bytes]":
    """Start a run in the background."""
    command = ["run", "--method", "px", "--sparsity", "0.982", "--model", "resnet20", "--data", args.data]
    command += ["--epochs", str(args.epochs), "--device", "cpu", "--out", str(out)]
    return subprocess.Popen([sys.executable, "-m", "pathex", *command], stdout=subprocess.DEVNULL)


def wait_for(out: Path, name: str, text: str) -> Path:
    """Wait until a file of the run holds a text; returns the run's folder."""
    while True:
        for path in out.glob(f"*/{name}"):
            if text in path.read_text():
                return path.parent
        time.sleep(0.2)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested containers with their places."""
    if isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, tree


def same(a: Any, b: Any) -> bool:
    """Bit for bit the same."""
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def main() -> int:
    """Run, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mini")
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        whole, broken = Path(scratch, "whole"), Path(scratch, "broken")
        start(args, whole).wait()
        for file, text in (("log.txt", '"round": 40,'), ("metrics.jsonl", '"epoch": 1,')):
            process = start(args, broken)
            wait_for(broken, file, text)
            time.sleep(5)
            process.kill()
            process.wait()
            print(f"killed after {text} in {file}", flush=True)
        start(args, broken).wait()
        folders = [wait_for(out, "result.json", "done") for out in (whole, broken)]
        results = [json.loads((folder / "result.json").read_text()) for folder in folders]
        states = [dict(leaves(torch.load(folder / "last.ckpt", weights_only=True))) for folder in folders]
        masks = [(folder / "mask.safetensors").read_bytes() for folder in folders]
    print(json.dumps(results, indent=1))
    wrong = [name for name in states[0] if not same(states[0][name], states[1].get(name))]
    wrong += [name for name in results[0] if results[0][name] != results[1][name]]
    print(f"{len(states[0])} values compared; different: {wrong}; masks equal: {masks[0] == masks[1]}")
    return int(masks[0] != masks[1] or any("seconds" not in name for name in wrong))


if __name__ == "__main__":
    raise SystemExit(main())
