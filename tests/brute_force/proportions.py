"""Densities in proportion: by bisection, nothing from the library."""


def proportional(weights, target, sizes, caps):
    """The densities min(cap, scale * weight) whose kept entries add up to the target, by bisection of the scale."""

    def densities(scale):
        return {name: min(caps[name], scale * weights[name]) for name in sizes}

    low, high = 0.0, 1e9
    for _ in range(300):
        middle = (low + high) / 2
        kept = sum(density * sizes[name] for name, density in densities(middle).items())
        low, high = (middle, high) if kept < target else (low, middle)
    return densities(high)
