import warnings

import pytest
import timm
from safetensors.torch import save_file

from pathex.errors import PathexWarning
from pathex.tasks import build
from voc_folder import write_voc

OTHER = "saw images normalised by mean .*0.5, 0.5, 0.5.* and std .*, and data 'voc2012' has mean .*0.485.*options mean"


@pytest.fixture
def options(tmp_path):
    """A network whose published weights saw images normalised by 0.5, and a file of weights for it."""
    write_voc(tmp_path, 4, 2)
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "weights.safetensors")
    return {
        "model_options": {"encoder_name": "tu-tf_efficientnet_lite0"},
        "data_options": {"root": tmp_path},
        "task_options": {"crop": 32},
        "seed": 0,
    }


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_another_normalisation_than_that_of_the_weights_is_a_warning(options, tmp_path):
    weights = str(tmp_path / "weights.safetensors")
    with pytest.warns(PathexWarning, match=OTHER):
        build("auto", "smp:Unet", "voc2012", weights=weights, **options)


@pytest.mark.parametrize("change", ["random", "given"])
def test_none_without_weights_or_with_the_same_normalisation(options, tmp_path, change):
    if change == "random":
        weights = None
    else:
        weights = str(tmp_path / "weights.safetensors")
        options["data_options"] |= {"mean": 0.5, "std": 0.5}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PathexWarning)
        build("auto", "smp:Unet", "voc2012", weights=weights, **options)
    assert not any("normalised" in str(each.message) for each in caught)
