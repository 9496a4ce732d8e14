"""Runs whose method searches for its mask, and the command that writes one."""

from pathlib import Path

import pytest

from experiments.runs.outcomes import mask_of, stop_at
from pathex.cli import main
from pathex.experiments.runs import RunConfig, run
from pathex.scores import search
from refusals import refused


@pytest.fixture
def searching(settings, monkeypatch):
    monkeypatch.setattr(search, "_SECONDS", 0)
    own = {"method": "cts", "method_options": {"epochs": 6, "batch_size": 8}, "rounds": None, "epochs": 1}
    return settings | own


def test_a_run_goes_on_in_the_middle_of_its_search(searching, tmp_path):
    whole = run(RunConfig(**searching)).folder
    again = searching | {"out": str(tmp_path / "again")}
    with pytest.raises(KeyboardInterrupt):
        run(RunConfig(**again), on_event=stop_at("search_step", step=3))
    folder = tmp_path / "again" / whole.name
    assert (folder / "search.ckpt").exists() and not (folder / "mask.safetensors").exists()
    told = []
    run(RunConfig(**again), on_event=lambda kind, payload: told.append((kind, payload)))
    steps = [payload["step"] for kind, payload in told if kind == "search_step"]
    assert steps[0] > 3 and steps[-1] == told[[kind for kind, _ in told].index("search_step")][1]["steps"]
    assert not [kind for kind, _ in told if kind == "prune_round"]
    assert mask_of(folder) == mask_of(whole) and not (folder / "search.ckpt").exists()


def test_what_no_search_takes_is_refused_before_there_is_a_folder(searching, tmp_path):
    for more, said in (
        ({"rounds": 5}, "searches for the mask in one round, not 5"),
        ({"narrow": 3}, "needs narrow=0"),
    ):
        with refused(said):
            run(RunConfig(**searching | more))
    assert not Path(searching["out"]).exists()


def test_the_command_goes_on_and_removes_only_its_own_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search, "_SECONDS", 0)
    out = tmp_path / "m.safetensors"
    text = "prune --device cpu --model resnet20 --model-options.width 2 --images-per-class 1 --sparsity 0.5"
    words = text.split()
    beside = tmp_path / "m.safetensors.search"
    beside.write_text("of another search")
    assert main([*words, "--method", "magnitude", "--out", str(out)]) == 0, capsys.readouterr().err
    assert beside.read_text() == "of another search"
    searched = [*words, "--method", "cts", "--method-options.epochs", "2", "--out", str(out)]
    assert main(searched) == 2 and "cannot be read" in capsys.readouterr().err
    beside.unlink()
    assert main(searched) == 0 and not beside.exists()
    assert "searching, step 1 of 2" in capsys.readouterr().err
