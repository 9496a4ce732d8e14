"""What the world does to a command: places that cannot be read or written, outputs that end, disks that are full."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pathex.cli import _own_words, main
from pathex.errors import TRUSTED
from pathex.experiments.runs import finished_result
from pathex.files import writing
from small_images import write_images

LONG = "x" * 5000
COMMANDS = [
    (f"run --data npz:{LONG}", "File name too long"),
    (f"run --out {LONG}", "File name too long"),
    ("run --out file", "file"),
    ("run --out ~no-one/runs", "'~no-one/runs' (RuntimeError: Could not determine home"),
    ("run --data imagefolder:~no-one/x", "'imagefolder:~no-one/x' (RuntimeError"),
    ("run --config nul.yaml", "'a\\x00b' holds NUL"),
    ("run --config folder", "folder"),
    ("sweep --config null.yaml", "list is None; allowed: "),
    ("report --config runs.yaml", "runs is None; allowed: "),
    (f"run --method {LONG}", f"unknown method '{LONG[:299]}..."),
    ("run --config nofile.yaml", "--config: 'nofile.yaml' cannot be read (No such file or directory)"),
    ("sweep --config=nofile.yaml", "'--config=nofile.yaml' cannot be read (No such file or directory)"),
    ("run --sparsity 90%", "--sparsity is '90%'; allowed: a number in [0, 1) (did you mean 0.9?)"),
    ("demo --sparsity=98.5%", "(did you mean 0.985?)"),
    (
        "run --method model_factories:open_ended --method.seed 3",
        "options seed of open_ended have names of pathex.prune's",
    ),
    ("run --config pipe", "pipe"),
    ("run --weights pipe", "pipe"),
    ("run --data npz:folder", "no such file"),
    ("run --data imagefolder:file", "folder"),
    ("run --start-mask pipe", "'pipe' is a pipe"),
    ("run --devices abc", "--devices is 'abc'"),
    ("run --devices 100000", "devices is 100000; "),
    ("run --strategy x --devices 2", "unknown strategy 'x'"),
    ("run --model-options {?1:2}", "--model-options"),
    ("run --model-options.num_classes 3", "model_options has 'num_classes'"),
    ("bench --model resnet20 --model-options.in_channels 3", "model_options has 'in_channels'"),
    ("sweep --config nested.yaml", "nest"),
    ("convert folder --out m.safetensors", "no mask file at folder"),
    ("report file", "no such folder: file"),
    ("report folder --out file", "no run found"),
    ("export --model resnet20 --out folder", "folder"),
    ("run --config foreign.yaml", "model 'os:system' comes from a file"),
    ("run --config foreign.yaml --trust_code=true", "unknown option"),
    ("run --config trusting.yaml", "trust_code"),
]


@pytest.fixture
def places(command, monkeypatch):
    """An empty folder with things that are not what a command expects; what runs a command there."""
    monkeypatch.setattr("pathex.distributed.launch.Child", None)  # no process is started
    Path("folder").mkdir()
    Path("file").write_text("text")
    os.mkfifo("pipe")
    Path("nul.yaml").write_text('out: "a\\0b"\n')
    Path("null.yaml").write_text("list: null\ngrid: {seed: [1]}\n")
    Path("runs.yaml").write_text("runs: null\n")
    Path("foreign.yaml").write_text("model: os:system\n")
    Path("trusting.yaml").write_text("model: os:system\ntrust_code: true\n")
    Path("nested.yaml").write_text("settings: {lr: " + "[" * 3000 + "]" * 3000 + "}")
    return command


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize(("words", "said"), COMMANDS, ids=[words[:40] for words, _ in COMMANDS])
def test_hostile_words_are_one_line(places, words, said):
    before = sorted(Path().iterdir())
    code, _, err = places(*words.split())
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert sorted(Path().iterdir()) == before and len(err) < 1000


def shell(line, folder):
    words = ["bash", "-o", "pipefail", "-c", line.replace("pathex", f"{sys.executable} -m pathex")]
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(words, cwd=folder, env=usual, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("pathex --help | true", 141, ""),
        ("pathex methods | true", 141, ""),
        ("pathex methods >/dev/full", 2, "pathex: error: standard output: No space left on device\n"),
        ("pathex models random >/dev/full", 2, "pathex: error: "),
        ("pathex methods random >&-", 0, ""),
        ("pathex nothing 2>/dev/full", 2, ""),
        ("cd gone && rmdir ../gone && pathex run --data npz:here.npz", 2, "pathex: error: "),
    ],
)
def test_outputs_that_end(line, code, said, tmp_path):
    (tmp_path / "gone").mkdir()
    done = shell(line, tmp_path)
    assert done.returncode == code and done.stderr.startswith(said) and done.stderr.count("\n") == bool(said), done


WORDS = ["run", "--method", "magnitude", "--rounds", "1", "--images-per-class", "1", "--epochs", "1", "--device", "cpu"]
WORDS += ["--model-options.width", "2", "--batch-size", "32"]


@contextmanager
def failing(number, kind):
    """A disk that fails once, at so many writes of files of a run; gives how many there were."""
    count, original = [0], writing.replacing

    @contextmanager
    def replacing(path):
        with original(path) as temporary:
            yield temporary
            count[0] += 1
            if count[0] == number:
                raise OSError(kind, os.strerror(kind))

    import pathex.experiments.runs.runner  # noqa: F401, what writes is patched where it is imported

    with pytest.MonkeyPatch.context() as patch:
        for module in [each for name, each in sys.modules.items() if name.startswith("pathex.")]:
            if getattr(module, "replacing", None) is original:
                patch.setattr(module, "replacing", replacing)
        yield count


def outcome(command, words, folder):
    assert command(*words)[0] == 0
    [made] = [path for path in Path(folder).iterdir() if path.is_dir()]
    result = {name: value for name, value in finished_result(made).items() if "seconds" not in name and name != "files"}
    return result, (made / "mask.safetensors").read_bytes()


def check_failures(command, numbers):
    words = [*WORDS, "--data", write_images(Path("tiny.npz").absolute())]
    with failing(0, errno.EIO) as count:
        undisturbed = outcome(command, [*words, "--out", "whole"], "whole")
    for number in numbers or range(1, count[0] + 1):
        kind = (errno.ENOSPC, errno.EIO)[number % 2]
        out = f"broken{number}"
        with failing(number, kind):
            code, _, err = command(*words, "--out", out)
        assert code == 2 and os.strerror(kind) in err and "Traceback" not in err, err
        assert not list(Path(out).rglob("*.tmp"))
        assert outcome(command, [*words, "--out", out], out) == undisturbed


def test_a_disk_that_fails_once_ends_a_run_with_a_line_and_the_same_command_goes_on(command):
    check_failures(command, (1, 5, 8))


@pytest.mark.slow
def test_a_disk_that_fails_at_any_write(command):
    check_failures(command, ())


def test_torch_out_of_room_and_memory_are_lines(command, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 128 vs 22")

    words = [*WORDS, "--data", write_images(Path("tiny.npz").absolute())]
    monkeypatch.setattr(torch, "save", full)
    code, _, err = command(*words)
    assert code == 2 and "last.ckpt cannot be written" in err
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        monkeypatch.setattr("pathex.experiments.runs.run", lambda *_, raised=error, **__: (_ for _ in ()).throw(raised))
        assert command(*words)[0] == 2
    monkeypatch.setattr("pathex.experiments.runs.run", lambda *_, **__: json.loads("["))
    with pytest.raises(ValueError, match="Expecting value"):  # a defect keeps its traceback
        main(words)


def test_code_is_imported_where_the_command_line_names_it(command, runs):
    Path("net.yaml").write_text("model: model_factories:tiny\n")
    Path("sweep.yaml").write_text("settings: {method: model_factories:tiny}\ngrid: {seed: [0]}\n")
    for words in (
        ["run", "--config", "net.yaml"],
        ["sweep", "--config", "sweep.yaml"],
        ["sweep", "--base", "net.yaml"],
    ):
        more = ["--grid", "{seed: [0]}"] if "--base" in words else []
        code, _, err = command(*words, *more)
        assert (code, err.count("--trust-code")) == ((2, 1) if words[0] == "sweep" else (0, 0)), err  # `runs` is a fake


def test_a_run_of_own_code_resumes_by_its_words_and_is_read_with_trust(command):
    words = [*WORDS, "--data", write_images(Path("tiny.npz").absolute()), "--model", "model_factories:tiny"]
    code, out, err = command(*words)
    assert code == 0, err
    folder = out.split()[-1]
    assert command(*words)[0] == 0
    again = ["run", "--config", f"{folder}/config.yaml"]
    for refusing in (again, ["export", folder, "--image-size", "8"]):
        code, _, err = command(*refusing)
        assert code == 2 and "'model_factories:tiny' comes from a file" in err and "--trust-code" in err
        assert command(*refusing, "--trust-code")[0] == 0
    assert command("report", folder)[0] == 0


def test_an_interrupted_help_has_no_traceback(monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored behind `&`
    monkeypatch.setattr("pathex.cli.parse", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(["--help"]) == 130 and capsys.readouterr().err == "pathex: stopped\n"
    signal.signal(signal.SIGINT, before)


def test_modules_of_the_working_folder_are_found_behind_all_others_where_words_name_them(command, monkeypatch):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(Path.cwd()))])
    before = list(sys.path)
    lines = [
        "from torch import nn",
        "tiny = lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))",
    ]
    Path("own_nets.py").write_text("\n".join(lines))
    Path("colorsys.py").write_text("raise SystemExit")  # a module of Python that nothing has imported yet
    Path("s.yaml").write_text("model: own_nets:tiny\n")
    words = ["--method", "magnitude", "--data", "fashion-mini", "--images-per-class", "1"]
    code, _, err = command("prune", "--config", "s.yaml", *words)
    assert code == 2 and "comes from a file" in err and sys.path == before
    try:
        for named in (["--model", "own_nets:tiny"], ["--config", "s.yaml", "--trust-code"]):
            code, _, err = command("prune", *named, *words)
            assert code == 0 and sys.path == [*before, str(Path.cwd())], err
            assert command("prune", "--model", "colorsys:rgb_to_hsv", *words)[0] == 2
    finally:
        sys.modules.pop("own_nets", None)


def test_a_name_of_a_file_trusts_nothing():
    assert main(["run", "--config", "os:system", "--method", "random"]) == 2 and TRUSTED.get() is None
    own = _own_words(["run", "--config", "os:system", "--base=os:system", "--grid", "{model: [os:getcwd]}"])
    assert "os:getcwd" in own and "os:system" not in own
