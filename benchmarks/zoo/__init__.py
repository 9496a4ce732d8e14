"""Every scorer on the vision networks of torchvision and timm: ``python scripts/zoo.py``."""
