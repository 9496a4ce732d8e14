"""Make the embedded data set: a seeded, class-balanced subset of Fashion-MNIST.

Reads the four files of Fashion-MNIST as the Debian package ``dataset-fashion-mnist`` installs them (they have the names
of the original download) and writes ``src/pathex/data/fashion_mini/fashion_mini.npz``:

    python scripts/make_fashion_mini.py [SOURCE] [--out FILE]
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

SOURCE = Path("/usr/share/datasets/fashion-mnist")
OUT = Path(__file__).resolve().parents[1] / "src" / "pathex" / "data" / "fashion_mini" / "fashion_mini.npz"
PER_CLASS = {"train": 500, "test": 100}
SEED = 0


def read(source: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,) of a part, ``train`` or ``t10k``, both uint8."""
    images = gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def choose(labels: np.ndarray, per_class: int, generator: np.random.Generator) -> np.ndarray:
    """Numbers of as many images of each class, in rising order."""
    drawn = [generator.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def main() -> None:
    """Read, choose and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE, help="folder of Fashion-MNIST's four files")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    generator = np.random.default_rng(SEED)
    arrays = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        images, labels = read(args.source, stem)
        chosen = choose(labels, PER_CLASS[part], generator)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images[chosen], labels[chosen]
    temporary = args.out.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(args.out)
    print(f"{args.out}: {len(arrays['train_labels'])} + {len(arrays['test_labels'])} images")


if __name__ == "__main__":
    main()
