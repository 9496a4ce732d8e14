"""Files of an unlucky disk: damage to any file of a run is found and named, or changes no number."""

import contextlib
import itertools
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import model_factories
from damage import spoil
from experiments.runs.outcomes import numbers, state_of, stop_at
from pathex.errors import InvalidInput
from pathex.experiments.report.records import read_all
from pathex.experiments.runs import RunConfig, load_run, run
from refusals import refused

FINISHED = (
    *("config.yaml", "inputs.json", "environment.json", "pruning_set.json", "pruning.json", "history.jsonl"),
    *("mask.safetensors", "last.ckpt", "metrics.jsonl", "result.json"),
)


def changed(content, how, place, size):
    """Bytes with one bit flipped, zeros, or an end cut off."""
    if how == "flip":
        return content[:place] + bytes([content[place] ^ 1 << size % 8]) + content[place + 1 :]
    if how == "zero":
        return content[:place] + bytes(len(content[place : place + size])) + content[place + size :]
    return content[:place]


def known_of(folder):
    """All numbers of a run: those of its files, and the weights."""
    files = [folder / name for name in ("result.json", "pruning.json", "history.jsonl", "metrics.jsonl")]
    return [numbers(file) for file in files], [tensor.tolist() for tensor in state_of(folder / "last.ckpt").values()]


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """The settings of a run, its finished folder, and the one of a process that was stopped after an epoch."""
    made = {}
    for name in ("finished", "stopped"):
        out = tmp_path_factory.mktemp(name)
        config = RunConfig(**small | {"model": "model_factories:tiny", "out": str(out)})
        with contextlib.suppress(KeyboardInterrupt):
            run(config, on_event=None if name == "finished" else stop_at("epoch"))
        made[name] = (config, next(path for path in out.iterdir() if path.is_dir()))
    return made


def again(config, folder, name, content, out):
    """Run once more with a damaged copy of the folder: the error, or None."""
    shutil.rmtree(out, ignore_errors=True)
    copied = shutil.copytree(folder, out / folder.name)
    (copied / name).write_bytes(content)
    try:
        run(RunConfig(**{**vars(config), "out": str(out)}))
    except InvalidInput as error:
        assert "\n" not in str(error) and Path(name).name in str(error), (name, str(error))
        return error
    return None


COUNTS: Counter = Counter()


def try_one(runs, which, name, how, place, size, out):
    config, folder = runs[which]
    whole = (folder / name).read_bytes()
    content = changed(whole, how, int(place * (len(whole) - 1)), size)
    if content == whole:
        return
    COUNTS[which, "tried"] += 1
    error = again(config, folder, name, content, out)
    COUNTS[which, "found" if error else "harmless"] += 1
    if error is None:
        assert known_of(out / folder.name) == known_of(runs["finished"][1]), (which, name, how, place, size)


WHERE = {"how": st.sampled_from(["flip", "zero", "cut"]), "place": st.floats(0, 1), "size": st.integers(1, 64)}


@seed(1)
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(FINISHED), **WHERE)
def test_damage_to_a_finished_run(runs, tmp_path_factory, name, how, place, size):
    try_one(runs, "finished", name, how, place, size, tmp_path_factory.getbasetemp() / "damaged")


@seed(2)
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(FINISHED[:-1]), **WHERE)
def test_damage_to_a_run_that_was_stopped(runs, tmp_path_factory, name, how, place, size):
    try_one(runs, "stopped", name, how, place, size, tmp_path_factory.getbasetemp() / "damaged")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["finished", "stopped"])
def test_much_damage(runs, tmp_path, which):
    draw = random.Random(3)
    for name, how in itertools.product(FINISHED if which == "finished" else FINISHED[:-1], ("flip", "zero", "cut")):
        for _ in range(20 if which == "finished" else 3):
            try_one(runs, which, name, how, draw.random(), draw.randint(1, 64), tmp_path / "out")
    assert COUNTS[which, "tried"] == COUNTS[which, "found"] + COUNTS[which, "harmless"] > 0


@seed(4)
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(FINISHED), **WHERE)
def test_a_report_leaves_out_a_run_only_for_the_files_that_it_reads(runs, tmp_path_factory, name, how, place, size):
    _, folder = runs["finished"]
    copied = tmp_path_factory.mktemp("report") / folder.name
    shutil.copytree(folder, copied)
    whole = (folder / name).read_bytes()
    (copied / name).write_bytes(changed(whole, how, int(place * (len(whole) - 1)), size))
    records, problems = read_all([folder, copied])
    assert len(records) + len(problems) == 2
    if problems:
        assert name in problems[0].reason and "\n" not in problems[0].reason
        read = {"config.yaml", "inputs.json", "result.json", "environment.json", "metrics.jsonl", "mask.safetensors"}
        read.add("pruning.json")
        assert name in read
    else:
        first, second = records
        assert (first.config, first.epochs, first.layers) == (second.config, second.epochs, second.layers)
        assert (
            first.value == second.value
            and first.channels == second.channels
            and {**first.environment} == {**second.environment}
        )


def test_a_finished_run_that_lost_a_file_is_not_done_and_fresh_runs_it_again(runs, tmp_path):
    config, folder = runs["finished"]
    ours = RunConfig(**{**vars(config), "out": str(tmp_path)})
    for name, content in (("last.ckpt", None), ("metrics.jsonl", 3), ("result.json", 9), ("config.yaml", None)):
        copied = shutil.copytree(folder, tmp_path / folder.name)
        spoil(copied / name, content)
        with refused(rf"{name}.* (is missing|changed since|cannot be read).*--fresh"):
            run(ours)
        result = run(RunConfig(**{**vars(ours), "fresh": True})).result
        assert numbers(copied / "result.json") == numbers(folder / "result.json") and run(ours).result == result
        shutil.rmtree(copied)


def test_a_checkpoint_of_an_earlier_version_has_no_digest(runs, tmp_path):
    _, folder = runs["finished"]
    copied = shutil.copytree(folder, tmp_path / folder.name)
    plain = (copied / "last.ckpt").read_bytes().partition(b"pathex-sha256:")[0]
    (copied / "last.ckpt").write_bytes(plain)
    network = load_run(copied, model_factories.tiny)
    assert isinstance(network, torch.nn.Module)
