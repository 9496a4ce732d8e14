import pytest

from pathex.errors import InvalidInput
from pathex.runs import RunConfig, check_config, run


def test_the_defaults_are_valid():
    check_config(RunConfig())
    check_config(RunConfig(method="dense", epochs=0, allocation={"conv.weight": 0.5}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "magnitud"}, "unknown method 'magnitud'. Did you mean 'magnitude'.*dense"),
        ({"sparsity": 1.0}, r"sparsity is 1\.0; allowed: a number in \[0, 1\)"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"rounds": 0}, "rounds is 0; allowed: a whole number of at least 1"),
        ({"epochs": -1}, "epochs is -1; allowed: a whole number of at least 0"),
        ({"epochs": "2"}, "epochs is '2'"),
        ({"batch_size": True}, "batch_size is True"),
        ({"lr": 0.0}, "lr is 0.0; allowed: a number above 0"),
        ({"milestones": (0.5, 1.5)}, r"milestones is \(0\.5, 1\.5\)"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov is True with momentum 0"),
        ({"augment": "mixup"}, "unknown augment 'mixup'"),
        ({"allocation": "locally"}, "unknown allocation 'locally'"),
        ({"allocation": {"a": 2.0}}, r"allocation of 'a' is 2\.0"),
        ({"allocation": "nowhere.yaml"}, r"allocation file 'nowhere\.yaml' cannot be read: No such file"),
        ({"start_mask": "nowhere.pt"}, r"start_mask 'nowhere\.pt' is no file; allowed: a file, 'zeros' or none"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"seed": -1}, "seed is -1"),
        ({"memory": "a lot"}, "memory must be .* not 'a lot'"),
        ({"method_options": {"redrawn": True}}, "method 'px' has no option 'redrawn'. Known: .*redraw"),
        ({"model_options": {"factory": len}}, "model_options has a value that a file cannot hold"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_written(changed, message, tmp_path):
    with pytest.raises(InvalidInput, match=message) as caught:
        run(RunConfig(**changed, out=str(tmp_path / "runs")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()
