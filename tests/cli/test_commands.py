import re
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

import pathex
from pathex import ntk
from pathex.cli import main
from pathex.cli.console import RunDisplay, show, table
from pathex.cli.listings import OF_RUNS
from pathex.errors import PathexWarning
from pathex.experiments.runs import RunConfig, build_task, read_config, run
from pathex.experiments.runs.stages import DENSE, TRAINED, alter_weights
from pathex.masks import Mask, read_mask
from pathex.masks.files import FORMATS
from small_images import write_images

OWN = "--model resnet20 --model-options.width 2 --in-channels 1"
SWEEP = Path(__file__).parents[2] / "recipes" / "sweeps" / "fashion-mini.yaml"


@pytest.mark.parametrize("words", ["--help", "-h"])
def test_help_lists_exactly_the_commands_there_are_and_the_version_is_one_line(command, words):
    code, out, err = command(words)
    assert (code, err) == (0, "")
    lines = out.split("Available subcommands:")[1].splitlines()
    listed = [line.split()[0] for line in lines if line[4:5].strip()]
    known = "demo run sweep prune convert report bench export ntk methods models datasets"
    assert listed == known.split()
    assert command() == (2, out, "")
    code, out, _ = command("--version")
    assert code == 0 and re.fullmatch(r"pathex \d+\.\d+\S*\n", out)


def test_help_and_options_of_a_sweep_import_nothing_heavy_beyond_the_package():
    heavy = {"torch", "altair", "pandas", "rich", "timm"}
    heavy |= {"pathex.experiments.runs.runner", "pathex.experiments.report"}
    program = (
        "import sys, pathex; before = set(sys.modules); from pathex.cli import COMMANDS, main; code = main(['--help']);"
        "from pathex.cli.parser import parse; parse(['sweep', '--config', sys.argv[1]], COMMANDS);"
        f"sys.exit(code or 3 * bool({heavy!r} & (set(sys.modules) - before)))"
    )
    words = [sys.executable, "-W", "error", "-c", program, str(SWEEP)]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0


def test_run_prints_the_folder_last_and_passes_the_settings(command, runs):
    code, out, err = command("run", "--method", "random", "--batch-size", "4", "--model-options.width", "2")
    assert code == 0
    assert runs == [RunConfig(method="random", batch_size=4, model_options={"width": 2})]
    assert Path(out.splitlines()[-1]).is_dir()
    assert "kept 1,000 of 4,000 weights" in err and "resumed after epoch 0" in err and "50.00 %" in err
    assert err.count("epoch 1 of 20: loss 1.000, accuracy 25.0 %") == 1


def test_run_reads_a_file_that_print_config_wrote(command, runs):
    nested = ("--method-options.levels", "3", "--task-options.crop", "65", "--augment-options.min_scale", "0.2")
    code, out, _ = command("run", "--epochs", "3", *nested, "--print_config")
    assert code == 0 and yaml.safe_load(out)["epochs"] == 3
    Path("r.yaml").write_text(out)
    assert command("run", "--config", "r.yaml", "--seed", "5")[0] == 0
    options = {"method_options": {"levels": 3}, "task_options": {"crop": 65}, "augment_options": {"min_scale": 0.2}}
    assert runs == [RunConfig(epochs=3, seed=5, **options)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *((f"{name} --sparsity {x}", f"sparsity.*{x}") for name in ("run", "prune") for x in (1.5, 98, -0.1, "high")),
        ("pruen", "unknown command 'pruen'. Did you mean 'prune'?"),
        ("run --sanity null", "sanity"),
        ("prune --out no/such/m.safetensors", "--out 'no/such/m.safetensors' must name a file"),
        ("convert", "no mask file given"),
        ("convert nowhere.pt", "no mask file at nowhere.pt"),
        ("convert m.safetensors --format zip", "--format is 'zip'; allowed: pathex, tensors"),
        ("convert m.safetensors --out no/such/m.safetensors", "--out 'no/such/m.safetensors' must name a file"),
        ("bench", "no network given; for instance: pathex bench RUN-FOLDER"),
        (f"bench {OWN}", "--image-size is not given; allowed: the side of the images in pixels"),
        (f"bench {OWN} --batch-size 0", "--batch-size is 0; allowed: whole numbers from 1"),
        (f"bench {OWN} --threads [1,-1]", r"--threads is \(1, -1\); allowed: whole numbers from 1"),
        ("ntk", "give folders of runs or --model, as in pathex ntk --model resnet20"),
        ("ntk runs/a --model resnet20", "give folders of runs or --model"),
        ("ntk nowhere", "nowhere/config.yaml"),
        ("ntk --model resnet20 --form blocks", "--form is 'blocks'; allowed: full, trace"),
        ("export nowhere", "no such folder: nowhere"),
        ("export . --weights w.pt", "--weights is given beside a run, which has its own"),
        ("bench . --num-classes 7", "--num-classes is given beside a run"),
        (f"export {OWN} --out n.tflite", "--out 'n.tflite' must end in .onnx, the format"),
        (f"export {OWN} --out nowhere/n.onnx", "'nowhere/n.onnx' must name a file in a folder that exists"),
        (f"export {OWN} --format tflite", "--format is 'tflite'; allowed: onnx, pt2, safetensors"),
        ("methods pxx", "pxx"),
        ("datasets nothing", "nothing"),
        ("report", "runs"),
        ("report nowhere", "nowhere"),
        ("report . --x size", "--x is 'size'; allowed: sparsity, parameters, multiply-adds"),
        ("report . --published all", "--published is 'all'; allowed: auto, none"),
        ("sweep", "no runs"),
        ("sweep --base nope.yaml", "--base is 'nope.yaml'; allowed: a file"),
        ("sweep --grid.sparsity [0.5,5]", "sparsity is 5"),
        ("sweep --grid.sparsty [0.5]", "unknown setting 'sparsty'"),
        ("sweep --conkurrent 3", "unknown option"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_writes_nothing(command, words, message):
    code, out, err = command(*words.split())
    assert (code, out, err.count("\n")) == (2, "", 1) and re.match(f"pathex: error: .*{message}", err)
    assert not list(Path.cwd().iterdir())


def test_ctrl_c_says_how_to_go_on_a_bug_keeps_its_traceback_and_a_warning_is_one_line(command, monkeypatch):
    def stopped(error):
        def call(*_, **__):
            raise error

        return call

    monkeypatch.setattr("pathex.experiments.report.build", stopped(KeyboardInterrupt))
    monkeypatch.setattr("pathex.experiments.runs.run", stopped(KeyboardInterrupt))
    more = "; what is finished is saved, and the same command goes on from there"
    assert command("run") == (130, "", f"pathex: stopped{more}\n")
    assert command("report", ".") == (130, "", "pathex: stopped\n")
    monkeypatch.setattr("pathex.experiments.runs.run", stopped(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        command("run")

    def warned(config, **_):
        warnings.simplefilter("always")
        warnings.warn("two\nlines", PathexWarning, stacklevel=1)
        return SimpleNamespace(folder="f")

    monkeypatch.setattr("pathex.experiments.runs.run", warned)
    assert command("run") == (0, "f\n", "pathex: warning: two lines\n")


def test_report_says_where_the_page_lies_and_what_is_left_out(command, runs):
    command("run", "--seed", "1")
    command("run", "--seed", "2")
    Path(runs[0].out, "broken").mkdir()
    Path(runs[0].out, "broken", "config.yaml").write_text("")
    code, out, err = command("report", "runs", "--out", "pages")
    assert (code, out) == (0, f"2 runs: {Path('pages', 'index.html')}\n")
    assert f"left out {Path('runs', 'broken')}: " in err
    assert Path("pages/index.html").exists()


def test_demo_runs_every_method_and_writes_a_report(command, runs):
    code, out, _ = command("demo", "--out", "d", "--seed", "3", "--epochs", "2")
    assert code == 0
    assert [config.method for config in runs] == ["dense", "random", "magnitude", "synflow", "px"]
    assert {(config.seed, config.epochs, config.out) for config in runs} == {(3, 2, str(Path("d/runs")))}
    assert "50.00 %" in out and out.splitlines()[-1] == f"report: {Path('d/report/index.html')}"
    assert Path("d/report/index.html").exists()


def test_listings(command):
    assert set(OF_RUNS) == {*DENSE, *TRAINED}
    for words, *said in (
        (("methods",), "Path eXclusion", "magnitude-after-training"),
        (("methods", "px"), pathex.methods("px").citation),
        (("methods", "imp"), "levels"),
        (("models",), "resnet20", "timm:NAME"),
        (("datasets",), "fashion-mini"),
        (("datasets", "voc2012"), "--data-options.root"),
    ):
        code, out, _ = command(*words)
        assert code == 0 and all(each in out for each in said)
    assert "cifar10" not in command("datasets", "fashion-mini")[1]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Options of a network of 218 weights and of a few images."""
    data = write_images(tmp_path_factory.mktemp("images") / "tiny.npz")
    return ("--data", data, "--images-per-class", "2", "--model", "model_factories:tiny", "--method", "magnitude")


def test_prune_writes_the_mask_that_run_trains(command, small):
    words = (*small, "--method", "px", "--sparsity", "0.75", "--rounds", "2", "--method-options.redraw", "true")
    code, out, _ = command("prune", *words, "--out", "m.safetensors")
    assert code == 0 and out.splitlines()[-1] == "m.safetensors"
    mask = Mask.load("m.safetensors")
    assert "conv.weight" in out and f"sparsity {mask.sparsity:.6g}" in out
    code, out, _ = command("run", *words, "--epochs", "0")
    assert code == 0
    assert mask == Mask.load(Path(out.splitlines()[-1]) / "mask.safetensors")
    assert mask.metadata["options"] == {"redraw": True}


@pytest.fixture(scope="module")
def half(small, tmp_path_factory):
    """The file of a mask, and one of the dense weights."""
    folder = tmp_path_factory.mktemp("half")
    for name, words in (("a.safetensors", ("--sparsity", "0.5")), ("w.pt", ("--sparsity", "0", "--format", "zeros"))):
        assert main(["prune", *small, *words, "--out", str(folder / name)]) == 0
    return folder / "a.safetensors", folder / "w.pt"


@pytest.mark.parametrize("form", ["zeros", "sparse"])
def test_prune_writes_other_formats_and_starts_from_them(command, small, half, form):
    words = ("--out", "half.safetensors", "--format", form)
    code, out, err = command("prune", *small, "--sparsity", "0.5", *words)
    assert (code, err) == (0, "") and out.splitlines()[-1] == "half.safetensors"
    found = read_mask("half.safetensors")
    assert found == Mask.load(half[0])
    start = ("--sparsity", "0.75", "--start-mask", "half.safetensors", "--out", "quarter.safetensors")
    code, _, err = command("prune", *small, *start, "--method", "random")
    assert (code, err) == (0, "")
    quarter = Mask.load("quarter.safetensors")
    assert (quarter - found).kept == 0 and quarter.kept == round(0.25 * found.total)
    assert quarter.metadata["start_mask"] == "half.safetensors"
    weights = ("--weights", "half.safetensors", "--start-mask", "zeros", "--out", "again.safetensors")
    code, _, err = command("prune", *small, *weights, "--sparsity", "0.75", "--method", "random")
    assert (code, err) == (0, "") and (Mask.load("again.safetensors") - found).kept == 0


@pytest.mark.parametrize("form", FORMATS)
def test_convert_goes_both_ways(command, half, form):
    mask, weights = half
    ending = "safetensors" if form == "pathex" else "pt"
    words = ("--format", form, "--out", f"b.{ending}", "--weights", str(weights))
    code, out, err = command("convert", str(mask), *words)
    assert (code, err) == (0, "") and out.splitlines()[-1] == f"b.{ending}" and "conv.weight" in out
    code, out, err = command("convert", f"b.{ending}", "--out", "c.safetensors")
    assert (code, err) == (0, "")
    assert Mask.load("c.safetensors") == Mask.load(mask)
    if form in FORMATS[2:]:
        assert command("convert", f"b.{ending}", "--format", "zeros", "--out", "d.pt")[0] == 0
        assert read_mask("d.pt") == Mask.load(mask)
    code, out, err = command("convert", str(mask), "--format", "zeros", "--out", "z.pt")
    assert (code, out, err.count("\n")) == (
        2,
        "",
        1,
    ) and "the mask format 'zeros' needs weights= (--weights FILE)" in err
    assert not Path("z.pt").exists()


@pytest.mark.filterwarnings("default:no weight in")
def test_convert_writes_no_mask_of_dense_weights(command, half):
    code, out, err = command("convert", str(half[1]))
    assert (code, out) == (2, "") and f"nothing is pruned in {half[1]}" in err
    assert not Path("mask.safetensors").exists()


def test_a_network_with_zeros_is_a_start_of_its_own(command, small):
    assert command("prune", *small, "--sparsity", "0.5", "--out", "half.pt", "--format", "zeros")[0] == 0
    words = (*small, "--weights", "half.pt", "--start-mask", "zeros", "--sparsity", "0.75", "--epochs", "0")
    code, out, err = command("run", *words)
    assert (code, err.count("error")) == (0, 0)
    mask = Mask.load(Path(out.splitlines()[-1]) / "mask.safetensors")
    assert (mask - read_mask("half.pt")).kept == 0 and mask.kept == round(0.25 * mask.total)
    code, _, err = command("prune", *small, "--start-mask", "half.pt", "--model-options.width", "4")
    assert code == 2 and "has shape (2, 3, 3, 3) in the mask and (4, 3, 3, 3) there" in err


def test_allocations_from_files_and_other_weights(command, small):
    Path("a.yaml").write_text("conv.weight: 1.0\nfc.weight: 0.25\n")
    words = ("prune", *small, "--sparsity", "0.5", "--out")
    assert command(*words, "m.safetensors", "--allocation", "a.yaml")[0] == 0
    mask = Mask.load("m.safetensors")
    assert mask.counts()["conv.weight"] == (54, 54) and mask.counts()["fc.weight"] == (32, 128)
    assert command(*words, "n.safetensors", "--allocation", "m.safetensors", "--method", "random")[0] == 0
    other = Mask.load("n.safetensors")
    assert other.counts() == mask.counts() and other != mask
    assert other.metadata["allocation"]["in proportion to"]["fc.weight"] == 0.25
    code, _, err = command(*words, "o.safetensors", "--prunable", "['norm.bias']", "--allocation", "uniform")
    assert (code, err) == (0, "") and Mask.load("o.safetensors").counts()["norm.bias"].total == 2


def feed(screen, epochs):
    display = screen.of("px")
    display("prune_round", {"round": 1, "rounds": 2, "density": 0.5})
    display("prune_done", {"seconds": 0.5, "kept": 10, "total": 1000})
    for epoch in range(1, epochs + 1):
        display("step", {"epoch": epoch, "epochs": epochs, "step": 1, "steps": 2})
        display("epoch", {"epoch": epoch, "epochs": epochs, "train_loss": 0.5, "train_accuracy": 0.75, "lr": 0.1})
    display("something new", {})


@pytest.mark.parametrize(("epochs", "lines"), [(1, 1), (3, 3), (10, 10), (11, 7), (160, 11)])
def test_without_a_terminal_there_are_a_few_short_lines(capsys, epochs, lines):
    with RunDisplay() as display:
        feed(display, epochs)
    out, err = capsys.readouterr()
    assert out == "" and "\x1b" not in err and "━" not in err
    assert err.count("px: epoch") == lines
    assert err.splitlines()[-1] == f"px: epoch {epochs} of {epochs}: loss 0.500, accuracy 75.0 %"


@pytest.mark.parametrize(
    ("reached", "rounds", "said"),
    [
        (range(1, 101), 100, [1, 10, 20, 30, 40, 50, 60, 70, 80, 90]),
        (range(1, 4), 3, [1, 2]),
        ((1,), 1, []),
        ((9, 12, 57, 58, 100), 100, [12, 57]),  # rounds left out
        (range(1, 13), 12, [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]),
    ],
)
def test_pruning_without_a_terminal_shows_signs_of_life(capsys, reached, rounds, said):
    with RunDisplay() as display:
        for _ in range(2):  # a second run of the same name
            for number in reached:
                display.show("px", "prune_round", {"round": number, "rounds": rounds, "density": 0.25})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"px: pruning, round {number} of {rounds}: density 0.25" for number in said] * 2


@pytest.mark.parametrize(
    ("columns", "right", "row", "lines"),
    [
        (("method", "test accuracy", "kept weights", "dead layers"), 3, ("px", "71.25 %", "4,041", "0"), 2),
        (("method", *(f"column {n}" for n in range(9))), 9, ("iterative-snip", *["1,234,567"] * 9), 3),
        (("layer", "kept"), 1, ("encoder." * 12 + "weight", "1,000,000"), 2),
        (("model", ""), 0, ("timm:" + "x" * 40, "a network for small images " * 3), 4),
        (("file", ""), 0, ("y" * 50, "z" * 60), 2),
    ],
)
def test_tables_of_80_columns_break_no_word(capsys, monkeypatch, columns, right, row, lines):
    monkeypatch.setattr("pathex.cli.console._PIPED_WIDTH", 80)
    made = table(*columns, right=right)
    made.add_row(*row)
    show(made)
    text = capsys.readouterr().out
    assert sorted(text.split()) == sorted(" ".join((*columns, *row)).split())
    assert text.count("\n") == lines


def test_on_a_terminal_bars_vanish_and_facts_stay(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with RunDisplay() as display:
        feed(display, 3)
    err = capsys.readouterr().err
    assert "px: kept 10 of 1,000 weights in 0.5 s" in err
    assert "px: epoch" not in err
    assert err.rstrip().endswith(("\x1b[2K", "\x1b[?25h")), "the last thing written clears the bar"


RESUMED = {
    "done before": {"stage": "done"},
    "resumed with the mask of before": {"stage": "pruned"},
    "resumed after epoch 4": {"stage": "training", "epoch": 4, "epochs": 9},
    "resumed after epoch 4 of task 2": {"stage": "training", "epoch": 4, "epochs": 9, "task": 2},
    "resumed after epoch 4 of level 1 of 5": {"stage": "training", "epoch": 4, "level": 1, "levels": 5},
    "level 1 of 5 was done before": {"stage": "level", "level": 1, "levels": 5},
}


def test_resuming_is_told(capsys):
    with RunDisplay() as screen:
        for payload in RESUMED.values():
            screen.show("px", "resumed", payload)
    assert capsys.readouterr().err.splitlines() == [f"px: {said}" for said in RESUMED]


def test_several_trainings_of_a_run_are_told_apart(capsys):
    with RunDisplay() as screen:
        display = screen.of("imp")
        for level in (1, 2):
            for epoch in (1, 2, 3):
                row = {"epoch": epoch, "epochs": 3, "train_loss": 0.5, "train_accuracy": 0.75}
                display("epoch", {**row, "level": level, "levels": 2})
            display("prune_round", {"round": level, "rounds": 2, "density": 0.5**level})
        display("epoch", {"epoch": 3, "epochs": 3, "train_loss": 0.25, "train_miou": 0.5, "task": 4})
        display("narrowed", {"width": 0.125, "parameters": 1234, "multiply_adds": 56789})
        display("narrowed", {"width": 3, "parameters": None, "multiply_adds": None})
        display("done", {"result": {"metric": "miou", "test_miou": 0.625}})
    assert capsys.readouterr().err.splitlines() == [
        "imp: level 1 of 2, epoch 3 of 3: loss 0.500, accuracy 75.0 %",
        "imp: pruning, round 1 of 2: density 0.5",
        "imp: level 2 of 2, epoch 3 of 3: loss 0.500, accuracy 75.0 %",
        "imp: task 4, epoch 3 of 3: loss 0.250, mIoU 50.0 %",
        "imp: dense with width 0.125: 1,234 parameters, 56,789 multiply-adds",
        "imp: dense with width 3",
        "imp: test mIoU 62.50 %",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    options = {"model_options": {"width": 2}, "data_options": {"classes": [0, 1]}, "images_per_class": 1, "epochs": 1}
    return run(RunConfig(method="magnitude", sparsity=0.5, out=str(tmp_path_factory.mktemp("runs")), **options)).folder


def test_bench_tells_what_a_run_costs(command, folder, monkeypatch):
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    code, out, _ = command("bench", str(folder), "--batch-size", "[1, 2]", "--rounds", "1", "--image-size", "8")
    assert code == 0 and out.splitlines()[-1] == "bench"
    rows = pd.read_csv("bench/latency.csv")
    assert rows.groupby("batch_size")["engine"].count().to_dict() == {1: 7, 2: 7}
    measured = rows[rows["milliseconds"].notna()]
    assert {*measured["engine"]} >= {"torch", "torch, channels last", "compact"}
    assert (measured["difference"] < 1e-4).all()
    assert (rows["kept"] < rows["parameters"]).all() and (rows["sparse_bytes"] < rows["bytes"]).all()
    assert pd.read_csv("bench/layers.csv")["weights"].sum() == Mask.load(folder / "mask.safetensors").total
    assert "openvino is not installed" in out and "no C++ compiler" in out


def test_ntk_compares_tickets_with_their_dense_network(command, folder):
    words = ("--images-per-class", "2", "--batch-norm", "stored")
    code, out, err = command("ntk", str(folder), *words)
    assert (code, err) == (0, "") and out.splitlines()[-1] == "ntk.csv"
    assert re.match(r"2 kernels: about \d+ s, \d+ MiB at most\n", out)
    dense, ticket = pd.read_csv("ntk.csv").to_dict("records")
    assert ticket["name"] == str(folder) and dense["of dense"] == 1 and dense["distance"] < 1e-6
    config = read_config(folder)
    task = build_task(config)
    images = task.pruning_set(2, 0)
    kernel = ntk.kernel(task.model, images.images, Mask.load(folder / "mask.safetensors"))
    assert ticket["trace"] == pytest.approx(kernel.trace, rel=1e-4)
    assert ticket["alignment"] == pytest.approx(ntk.alignment(kernel, images.labels), rel=1e-4)
    assert ticket["of dense"] == pytest.approx(ticket["trace"] / dense["trace"], rel=1e-4)
    # By the name of the network, with the mask as a file; seed and data options are those of the run.
    options = ("--model", "resnet20", "--model-options.width", "2", "--data-options.classes", "[0, 1]", *words)
    code, out, _ = command("ntk", *options, "--mask", str(folder / "mask.safetensors"), "--out", "n.csv")
    assert code == 0
    pd.testing.assert_frame_equal(*(pd.read_csv(file).drop(columns="name") for file in ("n.csv", "ntk.csv")))


def test_ntk_is_that_of_the_weights_that_a_run_begins_at(command, tmp_path):
    options = {"model_options": {"width": 2}, "data_options": {"classes": [0, 1]}, "images_per_class": 1, "epochs": 0}
    options |= {"sparsity": 0.5, "out": str(tmp_path)}
    plain, flipped, moved, dense, small = (
        run(RunConfig(**options | {"method": method, "sanity": sanity})).folder
        for method, sanity in (("magnitude", "none"), ("magnitude", "flip-signs"), ("magnitude", "reinit"),
                               ("dense", "none"), ("small-dense", "none"))
    )  # fmt: skip
    words = ("--images-per-class", "2", "--batch-norm", "stored")
    code, _, err = command("ntk", *map(str, (plain, flipped, moved, dense)), *words)
    assert (code, err) == (0, "")
    rows = pd.read_csv("ntk.csv")
    for folder in (flipped, moved):
        config = read_config(folder)
        task, mask = build_task(config), Mask.load(folder / "mask.safetensors")
        alter_weights(config, task, mask)
        found = ntk.trace(task.model, task.pruning_set(2, 0).images, mask)
        assert rows.set_index("name").loc[str(folder), "trace"] == pytest.approx(float(found), rel=1e-4)
    assert len(rows) == 3 + 3  # a dense network for each start
    code, _, err = command("ntk", str(small), *words)
    assert code == 2 and "holds a smaller network, not a ticket; allowed: runs with a mask, or dense" in err


def test_export_writes_the_network_that_was_named(command):
    torch.manual_seed(0)
    network = pathex.models.create("resnet20", 10, 1, width=2).eval()
    x = torch.randn(4, 1, 8, 8)
    mask = pathex.prune(network, "random", sparsity=0.9, data=x).mask
    mask.save("m.safetensors")
    torch.save(network.state_dict(), "w.pt")
    words = (*OWN.split(), "--weights", "w.pt", "--mask", "m.safetensors", "--image-size", "8")
    code, out, _ = command("export", *words, "--format", "pt2")
    assert code == 0 and out.splitlines()[-1] == "network.pt2"
    wanted = pathex.make_permanent(network, mask)(x)
    torch.testing.assert_close(torch.export.load("network.pt2").module()(x), wanted, rtol=1e-4, atol=1e-4)
    assert command("export", *words, "--format", "safetensors", "--out", "n.safetensors")[0] == 0
    small = pathex.compaction.load("n.safetensors", network)
    torch.testing.assert_close(small(x), wanted, rtol=1e-4, atol=1e-4)
    assert command("export", *words, "--format", "safetensors", "--compact", "false")[0] == 0
    assert read_mask("network.safetensors") == mask


def test_a_broken_method_of_another_package_is_named_and_left_out(command, monkeypatch):
    point = EntryPoint("mine", "no_such_package_here:Mine", "pathex.scorers")
    monkeypatch.setattr("pathex.scores.entry_points", lambda group: [point])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out, error = command("methods")
    assert code == 0 and "synflow" in out and "mine" not in out
    assert "method 'mine' is left out: entry point 'no_such_package_here:Mine'" in " ".join(error.split())
    assert command("methods", "mine")[0] == 2
