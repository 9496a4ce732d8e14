import pytest
import torch

from pathex.errors import InvalidInput
from pathex.masks import replacing
from pathex.train import check_machine, fabric, load_checkpoint, save_checkpoint


@pytest.mark.parametrize(
    ("gpus", "device", "options", "message"),
    [
        (0, "tpu", {}, "unknown device 'tpu'.*auto, cpu, cuda"),
        (0, "cpu", {"precision": "fp8"}, "unknown precision 'fp8'.*bf16-mixed"),
        (0, "cpu", {"precision": "16-mixed"}, "needs a CUDA device.*32-true"),
        (0, "cpu", {"precision": "16-mixed", "strategy": "fsdp"}, r"precision '16-mixed'.*32-true"),
        (0, "cpu", {"devices": 2, "sync_batchnorm": True}, r"sync_batchnorm is True on the CPU.*False"),
        (0, "cuda", {}, r"device 'cuda'.*Allowed here: auto, cpu"),
        (2, "cuda", {"precision": "16-mixed", "strategy": "fsdp"}, "'16-mixed' with .*'fsdp'.*bf16-mixed"),
        (2, "cuda", {"devices": 3}, "devices is 3; CUDA devices here: 2"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(gpus, device, options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(InvalidInput, match=message):
        check_machine(device, **options)
    assert check_machine("cpu", devices=2, strategy="fsdp") == "cpu"
    assert check_machine("auto") == ("cuda" if gpus else "cpu")
    assert not gpus or check_machine("cuda", devices=2, sync_batchnorm=True) == "cuda"


def test_a_cluster_around_the_process_plays_no_part_and_torchrun_does(monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "sweep", "SLURM_PROCID": "2"}.items():
        monkeypatch.setenv(name, value)
    machine = fabric("cpu")
    assert machine.world_size == 1 and machine.is_global_zero
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match="devices is 1, but torchrun started 2 processes here; allowed: 0, 2"):
        fabric("cpu")


def test_a_checkpoint_is_written_whole_and_holds_tensors_and_plain_values_only(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"weight": torch.ones(2), "rows": [{"loss": 0.5}]})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert load_checkpoint(path)["rows"] == [{"loss": 0.5}] and list(tmp_path.iterdir()) == [path]
    torch.save({"harm": tmp_path}, path)
    with pytest.raises(InvalidInput, match=r"last\.ckpt cannot be read"):
        load_checkpoint(path)
