"""Biased random walks: exact probabilities that they use each weight, layer by layer."""

import numpy as np

from brute_force.node_paths import ends_of


class Layer:
    """A layer as walks see it; ``back`` says that they come from the outputs."""

    def __init__(self, weight, groups=1, transposed=False):
        self.shape, self.sizes = weight.shape, np.abs(weight).ravel()
        self.ends = np.array(ends_of(weight.shape, groups, transposed))
        self.units = self.ends.max(0) + 1  # number of inputs and outputs

    def use(self, at, back=False):
        """The probability that a walk uses each weight, from those that it is at each input (output)."""
        here = self.ends[:, int(back)]
        away = np.bincount(here, weights=self.sizes)
        return (at[here] * self.sizes / away[here]).reshape(self.shape)

    def passed(self, use, back=False):
        """The probability that a walk is then at each output (input)."""
        return np.bincount(self.ends[:, 1 - int(back)], weights=use.ravel())
