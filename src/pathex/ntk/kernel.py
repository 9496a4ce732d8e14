"""The exact kernel as an object, and what one or two of them tell."""

import time
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pathex.errors import InvalidInput, check_name
from pathex.graph import Tensors
from pathex.ntk.exact import EQUATIONS, Form, by_jacobian, by_products, matrix, size_of, width_of
from pathex.ntk.network import Network, Options, network_of
from pathex.scores import mib

if TYPE_CHECKING:
    from altair import LayerChart

Exact = Literal["auto", "jacobian", "products"]
_AXES = {
    "full": ("image x output", "image x output"),
    "trace": ("image", "image"),
    "classes": ("output", "image", "image"),
    "blocks": ("image", "output", "output"),
}
PUSHED = 1.5  # backward passes that a forward pass of derivatives is worth


@dataclass(frozen=True)
class Cost:
    """What a result took, or will take.

    Attributes:
        passes: Backward passes of one image.
        bytes: Memory beside the model at its highest, as estimated beforehand.
        seconds: As measured, or of `pathex.ntk.predict` as predicted.
    """

    passes: float
    bytes: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Kernel:
    """The exact kernel in one of its forms.

    Attributes:
        values: In float64 on the CPU: ``full`` (N k, N k), image after image; ``trace`` (N, N), summed over the
            outputs; ``classes`` (k, N, N); ``blocks`` (N, k, k). With ``other`` images M in place of the first N.
        form: Which of these.
        crossed: Whether the rows are of another set of images than the columns.
        outputs: Number of outputs k.
        method: ``jacobian`` or ``products``.
        batch_norm: What BatchNorm used.
        dtype: Precision of the passes; sums are in float64.
        cost: What it took.
    """

    values: Tensor
    form: Form
    crossed: bool
    outputs: int
    method: str
    batch_norm: str
    dtype: torch.dtype
    cost: Cost

    @property
    def axes(self) -> tuple[str, ...]:
        """What the dimensions of `values` are."""
        return _AXES[self.form]

    @property
    def trace(self) -> float:
        """Sum of the diagonal of a kernel of one set: of all squared derivatives of all outputs over all images."""
        if self.crossed:
            raise InvalidInput("a kernel between two sets of images has no trace; allowed: of one set")
        return float(self.values.diagonal(dim1=-2, dim2=-1).sum())

    def plot(self) -> "LayerChart":
        """Size of its entries between images, summed over outputs, as colours."""
        import pandas as pd

        from pathex.figures import heat_map

        values = self.values
        if self.form == "full":
            whole = values.view(-1, self.outputs, values.shape[1] // self.outputs, self.outputs)
            values = whole.diagonal(dim1=1, dim2=3).sum(-1)
        elif self.form != "trace":
            values = values.sum(0) if self.form == "classes" else values.diagonal(dim1=1, dim2=2)
        places = [(str(row), str(column)) for row in range(len(values)) for column in range(values.shape[1])]
        cells = pd.DataFrame(places, columns=["row", "column"]).assign(value=values.abs().flatten().tolist())
        return heat_map(cells, "column", "row", label="absolute entry", log=True, step=max(2, 400 // len(values)))


def kernel(
    model: nn.Module,
    x: Any,
    mask: Tensors | None = None,
    method: Exact = "auto",
    *,
    form: Form = "full",
    other: Any = None,
    **options: Unpack[Options],
) -> Kernel:
    """The exact kernel ``sum_j df_k(x_n)/dtheta_j df_l(x_m)/dtheta_j`` over all parameters j that the mask keeps.

    Args:
        model: The network, run in evaluation mode and left as it was.
        x: Images ``(N, ...)``, or whatever `pathex.prune` takes as data.
        mask: Name to bool tensor, True = kept; removed weights are zero and do not count. None keeps everything.
        method: ``jacobian``: rows of the Jacobian, as many parameters at a time as half of the memory holds;
            ``products``: a product with the Jacobian and its transpose for each output of each image, where hardly
            anything fits; ``auto``: what takes fewer passes.
        form: See `Kernel`.
        other: A second set of images M; the kernel is then that between these (rows) and ``x`` (columns).
        options: ``batch_norm``, ``output`` and ``memory``, see `pathex.ntk`.

    Returns:
        The kernel.

    Raises:
        InvalidInput: If an argument is none of these, or the memory is too small for the kernel or a coupled batch.

    Example:
        >>> net = nn.Linear(2, 1, bias=False).double().eval()
        >>> kernel(net, torch.tensor([[3.0, 4.0], [1.0, 0.0]])).values
        tensor([[25.,  3.],
                [ 3.,  1.]], dtype=torch.float64)
    """
    check_name("method", method, get_args(Exact))
    check_name("form", form, EQUATIONS)
    network = network_of(model, x, mask, options)
    second = None if other is None else network.of(other, model)
    chosen, passes, size = planned(network, form, method, second)
    started = time.perf_counter()
    values = {"jacobian": by_jacobian, "products": by_products}[chosen](network, form, second)
    values = matrix(values, form, mirror=chosen == "jacobian" and second is None)
    cost = Cost(passes, size, time.perf_counter() - started)
    return Kernel(values, form, second is not None, network.outputs, chosen, network.batch_norm, network.dtype, cost)


def planned(network: Network, form: Form, method: Exact, other: Network | None = None) -> tuple[str, float, int]:
    """The algorithm, passes and bytes of a kernel."""
    if other is not None and form == "blocks":
        raise InvalidInput("form='blocks' is of one set of images; allowed with other: full, trace, classes")
    count, rows, others = network.images, network.images * network.outputs, other.images if other else 0
    held = 8 * torch.Size(size_of(network, form, others or count)).numel()
    if 2 * held > network.memory:
        raise InvalidInput(
            f"form={form!r} of {count} images and {network.outputs} outputs takes {mib(held)}, more than half of "
            f"memory={mib(network.memory)}; allowed: more memory, fewer images, or form='trace'"
        )
    of_row, width = count if network.coupled else 1, width_of(network)
    passes = {
        "jacobian": ceil(network.kept / width) * (rows * of_row + others * network.outputs),
        "products": rows * (of_row + PUSHED * (others or count)),
    }
    chosen = min(passes, key=passes.__getitem__) if method == "auto" else method
    if chosen == "jacobian":
        held += width * rows * network.dtype.itemsize + network.rows_bytes()
    return chosen, float(passes[chosen]), held + (0 if chosen == "jacobian" else products_bytes(network))


def products_bytes(network: Network) -> int:
    """Bytes that a product takes beside the model: the parameters, two directions, and a pass."""
    parameters = sum(leaf.numel() for leaf in network.leaves.values())
    return 3 * parameters * network.dtype.itemsize + network.pass_bytes(min(network.together, network.images))


def targets(labels: Tensor | None, outputs: int) -> Tensor:
    """Class numbers as ``(N, k)``, 1 for the class and -1 / (k - 1) for others; numbers ``(N, k)`` as they are."""
    if labels is not None and labels.is_floating_point() and labels.shape[1:] == (outputs,):
        return labels.double().cpu()
    fits = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
    if labels is None or not fits or not 0 <= int(labels.min()) <= int(labels.max()) < outputs:
        given = "no labels" if labels is None else f"labels {tuple(labels.shape)} of {labels.dtype}"
        raise InvalidInput(f"{given}; allowed: class numbers (N,) in 0..{outputs - 1}, or numbers (N, {outputs})")
    one_hot = nn.functional.one_hot(labels.cpu(), outputs).double()
    return (outputs * one_hot - 1) / max(1, outputs - 1)


def alignment(kernel: Kernel, labels: Tensor) -> float:
    """Kernel-target alignment: the cosine between a kernel and that of the labels (Cristianini et al., NIPS 2001).

        A = <K, y y^T> / (|K| |y y^T|),

    with y of all outputs of all images for form ``full``, and Y ``(N, k)`` in its place for ``trace``.

    Args:
        kernel: Of one set of images.
        labels: Class numbers ``(N,)``, read as 1 for the class and -1 / (k - 1) for the others, or numbers ``(N, k)``.

    Returns:
        A number in [-1, 1].

    Raises:
        InvalidInput: If the labels do not fit, or it is no such kernel.
    """
    y, K = targets(torch.as_tensor(labels), kernel.outputs), symmetric(kernel)
    y = y.reshape(-1, 1) if kernel.form == "full" else y
    if len(y) != len(K):
        raise InvalidInput(f"{len(labels)} labels do not fit a kernel of {tuple(K.shape)}")
    return _cosine(K, y @ y.T)


def distance(a: Kernel, b: Kernel) -> float:
    """Kernel distance ``1 - <A, B> / (|A| |B|)`` of two masks or two epochs (Fort et al., NeurIPS 2020)."""
    if a.form != b.form or a.values.shape != b.values.shape:
        shapes = f"{a.form!r} {tuple(a.values.shape)} and {b.form!r} {tuple(b.values.shape)}"
        raise InvalidInput(f"kernels of forms {shapes} have no distance; allowed: two of one form and shape")
    return 1 - _cosine(a.values, b.values)


def symmetric(kernel: Kernel) -> Tensor:
    """The matrix of a kernel that is symmetric; others are refused."""
    if kernel.form not in ("full", "trace") or kernel.crossed:
        raise InvalidInput(f"form {kernel.form!r} is no symmetric matrix; allowed: full or trace, of one set of images")
    return kernel.values


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))
