import pytest

from pathex import models
from pathex.errors import InvalidInput


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet200", {}, "'resnet200'. Did you mean 'resnet20'"),
        ("resnet20", {"norm": 3}, "option of model 'resnet20': 'norm'. Known: shortcut, width"),
        ("resnet20", {"width": 0}, "'width' .* positive integer, got 0"),
        ("resnet20", {"width": True}, "got True"),
        ("vgg11_bn", {"width": -1.0}, "positive number, got -1.0"),
        ("resnet20", {"num_classes": 0}, "num_classes must be a positive integer, got 0"),
        ("resnet20", {"in_channels": 1.5}, "in_channels must be a positive integer, got 1.5"),
        ("resnet20", {"weights": "imagenet"}, "own models have no tags"),
        ("resnet20", {"shortcut": "zero"}, "'shortcut' .* conv or pad, got 'zero'"),
        ("resnet18_tiny", {"width": 0}, "'width' .* positive integer, got 0"),
        ("timm:resnet5000", {}, "unknown timm model 'resnet5000'. Did you mean resnet50"),
        ("timm:resnet18.a1_in2k", {}, "unknown tag of timm model .* a1_in1k"),
        ("timm:test_resnet", {"nothing": 1}, "cannot be made .*'nothing'"),
        ("timm:test_resnet", {"weights": "in22k"}, "no such file, and no tag .* Tags: imagenet, r160_in1k"),
        ("torchvision:resnt18", {}, "Did you mean resnet18"),
        ("torchvision:fcn_resnet50", {}, "unknown torchvision model"),
        ("torchvision:resnet18", {"nothing": 1}, "'nothing'"),
        ("torchvision:resnet18", {"weights": "V9"}, "Tags: imagenet, IMAGENET1K_V1"),
        ("torchvision:resnet18", {"weights": "missing.pt"}, "'missing.pt' does not exist"),
        ("no_such_package_here:make", {}, "cannot import 'no_such_package_here'"),
        (":make", {}, "not of the form package.module:name"),
        ("model_factories:absent", {}, "no callable 'absent'"),
        ("model_factories:number", {}, "no callable 'number'"),
        ("model_factories:fixed", {"width": 3}, "cannot be made .*'width'"),
        ("model_factories:broken", {}, "RuntimeError: two lines"),
        ("model_factories:wrong", {}, "returned int, not a torch.nn.Module"),
        ("model_factories:fixed", {"weights": "imagenet"}, "factories have no tags"),
        ("smp:Unett", {}, "unknown segmentation model 'Unett'. Did you mean Unet"),
        ("smp:create_model", {}, "unknown segmentation model"),
        ("smp:Unet", {"encoder_name": "resnet19"}, "unknown encoder 'resnet19'. Did you mean"),
        ("smp:Unet", {"encoder_name": "tu-resnet19"}, r"cannot be made .*resnet19"),
        ("smp:Unet", {"encoder_name": "tu-test_resnet", "nothing": 3}, "cannot be made .*'nothing'"),
        ("smp:Unet", {"encoder_name": "resnet19", "weights": "imagenet"}, "unknown encoder 'resnet19'. Did you mean"),
        ("smp:Unet", {"encoder_name": 50}, "option 'encoder_name' of model 'smp:Unet' must be the name .*, got 50"),
        ("smp:Unet", {"encoder_weights": None}, "option 'encoder_weights' of model 'smp:Unet' is set by weights"),
        ("smp:Unet", {"classes": 3}, "option 'classes' .* is set by num_classes"),
        ("smp:Unet", {"nothing": 3}, "unknown option of model 'smp:Unet': 'nothing'. Known: activation, aux_params, "),
        ("smp:DeepLabV3Plus", {"encoder_output_stride": 4}, "output stride 8 or 16, got 4"),
        ("smp:Unet", {"weights": "in22k"}, "no tag of model 'smp:Unet with resnet34'. Tags: imagenet, imagenet$"),
        ("smp:Unet", {"encoder_name": "resnet18", "weights": "x"}, "Tags: imagenet, imagenet, ssl, swsl$"),
        ("smp:Unet", {"encoder_name": "tu-tf_efficientnet_lite0", "weights": "x"}, "Tags: imagenet, .*in1k"),
        ("smp:Unet", {"weights": "absent.pth"}, "'absent.pth' does not exist"),
    ],
)
def test_bad_input_is_one_line(name, options, message):
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(InvalidInput, match=message) as caught:
        models.create(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.describe("resnet200"), "Did you mean 'resnet20'"),
        (lambda: models.CifarResNet(21), "got 21"),
        (lambda: models.TinyResNet(20), "18, 34 or 50, got 20"),
        (lambda: models.CifarVGG(12), "got 12"),
    ],
)
def test_other_depths_and_names(call, message):
    with pytest.raises(InvalidInput, match=message):
        call()
