"""What a kernel predicts: regression with it, and training of the linearised network beside the real one."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from pathex.errors import InvalidInput, check_integer, check_name
from pathex.graph import Tensors
from pathex.masks import own_module
from pathex.ntk.kernel import Cost, kernel, targets
from pathex.ntk.network import Options, network_of, read
from pathex.scores import read_batches

if TYPE_CHECKING:
    from altair import LayerChart


@dataclass(frozen=True, eq=False)
class Regression:
    """Kernel regression; ``float()`` gives the accuracy on the test images.

    Attributes:
        accuracy: Fraction of test images whose largest output is the class, or NaN without labels, and of one output.
        outputs: Predictions ``(M, k)`` in float64; class numbers are fitted as 1 and -1 / (k - 1).
        cost: What both kernels took.
    """

    accuracy: float
    outputs: Tensor
    cost: Cost

    def __float__(self) -> float:
        return self.accuracy


def regression(
    model: nn.Module,
    train: Any,
    test: Any,
    mask: Tensors | None = None,
    *,
    ridge: float = 1e-3,
    form: Literal["full", "trace"] = "full",
    **options: Unpack[Options],
) -> Regression:
    """Ridge regression with the masked kernel, ``f(x) = K(x, X) (K(X, X) + r I)^-1 Y``, without the network's own f.

    Args:
        model: As for `pathex.ntk.kernel`.
        train: Images X and labels: class numbers, or numbers ``(N, k)``.
        test: Images, and labels for the accuracy.
        mask: What is kept.
        ridge: r in units of the mean eigenvalue of K(X, X).
        form: ``full``, or ``trace``: one kernel for all outputs, their mean, k times cheaper.
        options: ``batch_norm``, ``output`` and ``memory``, see `pathex.ntk`; ``batch`` is refused.

    Returns:
        Accuracy and predictions.

    Raises:
        InvalidInput: If labels do not fit, or the ridge is not positive.
    """
    check_name("form", form, ("full", "trace"))
    if not ridge > 0:
        raise InvalidInput(f"ridge must be a positive number, not {ridge!r}")
    train, test = (read_batches(each, own_module(model)) for each in (train, test))
    across = kernel(model, train, mask, form=form, other=test, **options)
    inner = kernel(model, train, mask, form=form, **options)
    (_, y), (_, labels) = read(train, model), read(test, model)
    y = targets(y, inner.outputs)
    scale = ridge * inner.trace / len(inner.values)
    shifted = inner.values + scale * torch.eye(len(inner.values), dtype=torch.float64)
    found = across.values @ torch.linalg.solve(shifted, y.view(len(shifted), -1))
    found = found.view(-1, inner.outputs)
    seconds, passes = (sum(getattr(each.cost, what) for each in (inner, across)) for what in ("seconds", "passes"))
    accuracy = torch.nan
    if labels is not None and inner.outputs > 1:
        right = found.argmax(1) == targets(labels, inner.outputs).argmax(1)
        accuracy = float(right.double().mean())
    return Regression(accuracy, found, Cost(passes, across.cost.bytes, seconds))


@dataclass(frozen=True, eq=False)
class Linearised:
    """Losses over the training images before each step and after the last, ``(steps + 1,)`` in float64.

    Attributes:
        network: Of the network.
        linear: Of its linearisation at the start, ``f_0 + J (theta - theta_0)``.
        cost: What kernel and training took.
    """

    network: Tensor
    linear: Tensor
    cost: Cost

    def part(self, tolerance: float = 0.1) -> int | None:
        """The first step after which the losses differ by more than this fraction of the first loss; None: none."""
        apart = ((self.network - self.linear).abs() > tolerance * self.network[0]).nonzero()
        return int(apart[0]) if len(apart) else None

    def plot(self) -> "LayerChart":
        """Both losses over the steps."""
        import pandas as pd

        from pathex.figures import curves

        both = {"network": self.network, "linearisation": self.linear}
        rows = [(name, step, loss) for name, losses in both.items() for step, loss in enumerate(losses.tolist())]
        return curves(pd.DataFrame(rows, columns=["series", "step", "mean"]), "step", x_title="step", y_title="loss")


def linearised(
    model: nn.Module,
    data: Any,
    mask: Tensors | None = None,
    *,
    steps: int,
    lr: float,
    momentum: float = 0.0,
    batch_size: int | None = None,
    loss: Literal["cross-entropy", "mse"] = "cross-entropy",
    seed: int = 0,
    **options: Unpack[Options],
) -> Linearised:
    """Train a masked network and its linearisation by the same steps of (stochastic) gradient descent.

    The linearisation moves in the space of outputs, by the exact kernel; nothing of the model is changed. BatchNorm is
    held as ``batch_norm`` says throughout.

    Args:
        model: As for `pathex.ntk.kernel`.
        data: Images and labels: class numbers, or numbers ``(N, k)`` for ``mse``.
        mask: What is kept, and trained.
        steps: Number of steps.
        lr: Learning rate.
        momentum: As of `torch.optim.SGD`.
        batch_size: Images of a step, drawn without replacement in each epoch; None takes all of them.
        loss: ``cross-entropy`` or ``mse``, means over images, and over outputs too.
        seed: Seed of the order of the images.
        options: ``batch_norm``, ``output`` and ``memory``, see `pathex.ntk`.

    Returns:
        The losses of both.

    Raises:
        InvalidInput: If labels do not fit, or an argument is none of these.
    """
    check_name("loss", loss, ("cross-entropy", "mse"))
    data = read_batches(data, own_module(model))
    net = network_of(model, data, mask, options)
    if loss == "cross-entropy" and net.outputs < 2:
        raise InvalidInput("loss='cross-entropy' needs two outputs or more, this network has one; allowed: 'mse'")
    size = check_integer("batch_size", net.images if batch_size is None else batch_size, 1, net.images)
    if net.coupled and size < net.images:
        raise InvalidInput("batch_size with batch_norm='batch' would change the kernel; allowed: None, or calibrated")
    found, started = kernel(model, data, mask, **options), time.perf_counter()
    y = targets(read(data, model)[1], net.outputs)

    def mean_loss(outputs: Tensor, rows: Tensor) -> Tensor:
        return (
            F.mse_loss(outputs[rows], y[rows]) if loss == "mse" else F.cross_entropy(outputs[rows], y[rows].argmax(1))
        )

    def slope(outputs: Tensor, rows: Tensor) -> Tensor:
        at = outputs.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(mean_loss(at, rows), at)[0]

    everything, batches = torch.arange(net.images), _batches(net.images, size, seed)
    real = replace(net, leaves={name: leaf.detach().clone().requires_grad_() for name, leaf in net.leaves.items()})
    optimizer = torch.optim.SGD(real.leaves.values(), lr, momentum)
    linear = start = real.values()
    velocity, losses = torch.zeros_like(start), []
    for _ in range(check_integer("steps", steps) + 1):
        outputs, rows = real.values(), next(batches)
        losses.append([float(mean_loss(each, everything)) for each in (outputs, linear)])
        for name, gradient in real.pulled(slope(outputs, rows)).items():
            real.leaves[name].grad = gradient
        optimizer.step()
        velocity = momentum * velocity + (found.values @ slope(linear, rows).flatten()).view_as(start)
        linear = linear - lr * velocity
    seconds = found.cost.seconds + time.perf_counter() - started
    passes = found.cost.passes + steps * net.images
    network, linearisation = torch.tensor(losses, dtype=torch.float64).T
    return Linearised(network, linearisation, Cost(passes, found.cost.bytes, seconds))


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    source = torch.Generator().manual_seed(check_integer("seed", seed, 0))
    while True:
        yield from torch.randperm(count, generator=source).split(size)
