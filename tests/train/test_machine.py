import pytest
import torch

from pathex.errors import InvalidInput
from pathex.masks import replacing
from pathex.train import check_machine, fabric, load_checkpoint, save_checkpoint


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("tpu", "32-true", "unknown device 'tpu'.*auto, cpu, cuda"),
        ("cpu", "fp8", "unknown precision 'fp8'.*bf16-mixed"),
        ("cpu", "16-mixed", "needs a CUDA device.*32-true"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(device, precision, message):
    with pytest.raises(InvalidInput, match=message):
        check_machine(device, precision)


def test_several_devices_are_refused_where_they_cannot_be(monkeypatch):
    with pytest.raises(InvalidInput, match=r"precision '16-mixed'.*32-true"):
        check_machine("cpu", "16-mixed", strategy="fsdp")
    with pytest.raises(InvalidInput, match=r"sync_batchnorm is True on the CPU.*False"):
        check_machine("cpu", devices=2, sync_batchnorm=True)
    assert check_machine("cpu", devices=2, strategy="fsdp") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_machine("cuda", devices=2, sync_batchnorm=True) == "cuda"
    with pytest.raises(InvalidInput, match=r"precision '16-mixed' with strategy 'fsdp'.*bf16-mixed"):
        check_machine("cuda", "16-mixed", devices=2, strategy="fsdp")
    with pytest.raises(InvalidInput, match="devices is 3; CUDA devices here: 2"):
        check_machine("cuda", devices=3)


def test_another_number_than_torchrun_started_is_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match="devices is 1, but torchrun started 2 processes here; allowed: 0, 2"):
        fabric("cpu")


def test_cuda_is_refused_without_a_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInput, match=r"device 'cuda'.*Allowed here: auto, cpu"):
        check_machine("cuda", "32-true")
    assert check_machine("auto", "32-true") == "cpu"


def test_a_cluster_around_the_process_plays_no_part(monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "sweep", "SLURM_PROCID": "2"}.items():
        monkeypatch.setenv(name, value)
    machine = fabric("cpu")
    assert machine.world_size == 1
    assert machine.is_global_zero


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"


def test_a_checkpoint_holds_tensors_and_plain_values_only(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"weight": torch.ones(2), "rows": [{"loss": 0.5}]})
    assert load_checkpoint(path)["rows"] == [{"loss": 0.5}]
    torch.save({"harm": tmp_path}, path)
    with pytest.raises(InvalidInput, match=r"last\.ckpt cannot be read"):
        load_checkpoint(path)
