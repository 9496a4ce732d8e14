import subprocess
import sys

import pytest

from experiments.runs.outcomes import WITH_TESTS, entries, stop_at
from pathex.experiments.runs import RunConfig, run
from pathex.train import check_logger
from refusals import refused
from small_images import write_images

SMALL = {"model_options": {"width": 2}, "method": "magnitude", "sparsity": 0.5, "batch_size": 256, "device": "cpu"}


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_the_curve_of_a_run_that_was_taken_up_again(tmp_path):
    data = write_images(tmp_path / "tiny.npz")
    config = RunConfig(**SMALL, data=data, images_per_class=1, epochs=2, logger="tensorboard", out=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run(config, on_event=stop_at("epoch"))
    done = run(config)
    rows = entries(done.folder / "metrics.jsonl")
    found = scalars(done.folder / "tensorboard")
    for name in ("train_loss", "train_accuracy", "lr"):
        assert [step for step, _ in found[name]] == [1, 2]
        assert [value for _, value in found[name]] == pytest.approx([row[name] for row in rows])
    assert found["test_accuracy"] == [(2, pytest.approx(done.result["test_accuracy"]))]
    assert [step for step, _ in found["hp_metric"]] == [0]  # the settings were logged once


def test_a_logger_whose_package_is_missing_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused(r"logger 'wandb' needs wandb: pip install 'pathex\[tracking\]'"):
        check_logger("wandb")
    with refused(r"unknown logger 'csv'.*tensorboard"):
        check_logger("csv")


def tracked(folder, logger):
    """A run in a process of its own, as these packages warn when they are imported; its folder."""
    pytest.importorskip(logger, exc_type=ImportError)
    pytest.importorskip("pytorch_lightning", exc_type=ImportError)
    code = f"""
from experiments.runs.outcomes import stop_at
from pathex.experiments.runs import RunConfig, run
config = RunConfig(**{SMALL!r}, epochs=2, logger={logger!r}, out={str(folder)!r})
try:
    run(config, on_event=stop_at("epoch"))
except KeyboardInterrupt:
    pass
run(config)
"""
    environment = {**WITH_TESTS, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = folder.iterdir()
    return made


def test_mlflow_has_one_run_with_the_whole_curve(tmp_path):
    folder = tracked(tmp_path, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pathex")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == (folder.name, "FINISHED")
    assert found.data.params["sparsity"] == "0.5"
    curve = [(each.step, each.value) for each in client.get_metric_history(found.info.run_id, "train_loss")]
    assert curve == [(row["epoch"], row["train_loss"]) for row in entries(folder / "metrics.jsonl")]


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tracked(tmp_path, "wandb")
    assert [each.stem for each in (folder / "wandb").glob("offline-run-*/*.wandb")] == [f"run-{folder.name}"] * 2


def test_wandb_needs_a_key_and_never_asks(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with refused("logger 'wandb' finds no key; allowed: WANDB_API_KEY, wandb login, or WANDB_MODE=offline"):
        check_logger("wandb")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    check_logger("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    with refused("finds no key"):
        check_logger("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_logger("wandb")
