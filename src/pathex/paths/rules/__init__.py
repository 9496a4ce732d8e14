"""What operators do to paths, by kind: in a recorded pass, and in linear readings."""

from pathex.paths.rules import choices, gates, layers, norms, pools, products, smooth, structure, sums

__all__ = ["choices", "gates", "layers", "norms", "pools", "products", "smooth", "structure", "sums"]
