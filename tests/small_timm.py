"""Networks of timm, as small as they come: for three classes, and images of 16 pixels (ConvNeXt: 32)."""

import timm


def vit():
    options = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 12, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **options)


def swin():
    """With a block whose windows are shifted, and a second stage."""
    options = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, drop_path_rate=0.0, **options)


def convnext():
    return timm.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
