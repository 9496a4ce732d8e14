import re
import warnings

import pytest
import timm
from safetensors.torch import save_file

from pathex.errors import PathexWarning
from pathex.tasks import build
from voc_folder import write_voc


@pytest.mark.parametrize(
    ("weights", "data_options", "other"),
    [("weights.safetensors", {}, True), ("weights.safetensors", {"mean": 0.5, "std": 0.5}, False), (None, {}, False)],
)
def test_another_normalisation_than_that_of_the_weights_is_a_warning(weights, data_options, other, tmp_path):
    write_voc(tmp_path, 4, 2)
    # Its published weights saw images normalised by 0.5.
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "weights.safetensors")
    options = {"model_options": {"encoder_name": "tu-tf_efficientnet_lite0"}, "task_options": {"crop": 32}, "seed": 0}
    options |= {"data_options": {"root": tmp_path, **data_options}, "weights": weights and str(tmp_path / weights)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PathexWarning)
        build("auto", "smp:Unet", "voc2012", **options)
    said = [str(each.message) for each in caught if "normalised" in str(each.message)]
    assert len(said) == other
    form = (
        "saw images normalised by mean .*0.5, 0.5, 0.5.* and std .*, and data 'voc2012' has mean .*0.485.*options mean"
    )
    assert all(re.search(form, line) for line in said)
