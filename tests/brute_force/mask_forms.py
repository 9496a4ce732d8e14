"""Masks in foreign forms, and densities in proportion: loops over single entries, nothing from the library."""


def rows(nested):
    """The rows along the last dimension of a nested list."""
    if not nested or not isinstance(nested[0], list):
        return [list(nested)]
    return [row for part in nested for row in rows(part)]


def packed(row):
    """A row as bytes, its first entry in the lowest bit of the first byte (numpy's bitorder "little")."""
    result = [0] * ((len(row) + 7) // 8)
    for index, bit in enumerate(row):
        result[index // 8] += int(bit) << (index % 8)
    return result


def row_offsets(nested):
    """Kept entries before each row, counted along the first dimension only: cumsum(counts, 0) - counts."""

    def counts(part):
        return sum(part) if not isinstance(part[0], list) else [counts(inner) for inner in part]

    def minus(a, b):
        return [minus(x, y) for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a - b

    def plus(a, b):
        return [plus(x, y) for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a + b

    own = counts(nested)
    if not isinstance(own, list):
        return 0
    sums = [own[0]]
    for part in own[1:]:
        sums.append(plus(sums[-1], part))
    return minus(sums, own)


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
