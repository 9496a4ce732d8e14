"""An engineer's way from a folder of images to a file that runs alone: the commands of the guide, as they stand."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import pathex
from pathex.cli import main
from small_images import write_image
from test_docs import DOCS, blocks

PAGE = DOCS / "guides" / "deployment.md"
SMALLER = {"--weights imagenet": "", "--epochs 20": "--epochs 1 --rounds 2 --batch-size 8", "224": "32"}
SMALLER |= {"'[1, 32]'": "1", "'[1, 2]'": "1 --rounds 1"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_the_commands_of_the_guide_lead_to_a_file_that_runs_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, (part, label) in enumerate((p, c) for p in ("train", "test") for c in ("cat", "dog")):
        for image in range(12):
            write_image(tmp_path / "photos" / part / label / f"{image}.png", (60 * number, 10 * image, 99), (40, 40))
    folder = ""
    text = "\n".join(blocks(PAGE, "sh"))
    for long, short in SMALLER.items():
        text = text.replace(long, short)
    for line in text.splitlines():
        assert main(shlex.split(line.replace("$folder", folder))[1:]) == 0, line
        said = capsys.readouterr().out.splitlines()
        folder = said[-1] if line.startswith("pathex run") else folder
    assert {"latency.csv", "layers.csv", "latency.png"} <= {path.name for path in Path("bench").iterdir()}
    pytest.importorskip("onnxruntime")
    Image.new("RGB", (50, 60), "red").save("photo.jpg")
    (code,) = blocks(PAGE, "py")
    exec(compile(code, str(PAGE), "exec"), {})
    assert re.fullmatch(r"cat|dog", capsys.readouterr().out.strip())
    assert pathex.load_run(folder).preprocessing.classes == ("cat", "dog")
