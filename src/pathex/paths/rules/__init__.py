"""What operators do to paths, by kind: in a recorded pass, and in linear readings."""

from pathex.paths.rules import gates, layers, norms, pools, products, smooth, sums

__all__ = ["gates", "layers", "norms", "pools", "products", "smooth", "sums"]
