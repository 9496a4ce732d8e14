"""From a network and its mask to a module that computes what is kept."""

import importlib.util
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pathex.compaction import read_channels
from pathex.errors import InvalidInput, UnsupportedOperation, check_integer, check_names
from pathex.graph import Graph, Node, copied, trace
from pathex.masks import Mask, make_permanent, own_module
from pathex.sparse.layers import Features, Reading

if TYPE_CHECKING:
    from pathex.sparse.choice import Choice
    from pathex.sparse.network import CompiledNetwork


def compile(
    model: nn.Module,
    mask: Mask | None = None,
    example_input: Tensor | None = None,
    threads: int | None = None,
    choice: "Choice | str | None" = None,
) -> "CompiledNetwork":
    """A module for inference on a CPU that computes only the kept weights of a network.

    BatchNorm is folded into the layer before it; sums and activations that bound their values (ReLU, ReLU6, clamp) are
    computed with the layer. Convolutions in two dimensions, linear layers, max pools and global means have kernels; all
    else is computed by torch. Which layers are sparse is measured on the example.

    Args:
        model: The network; left as it is.
        mask: What is kept; None: what is not zero.
        example_input: Images ``(N, C, H, W)``, as many as calls will have; any other number works too.
        threads: Threads of the kernels; None: as many as torch has.
        choice: In place of measuring the `choice` of a compiled network, which gives the same bits; or one way for all
            layers: ``sparse``, ``dense`` or ``channels-last``.

    Returns:
        The module, for float32 images of the example's shape.

    Raises:
        InvalidInput: If numba is not installed (the extra ``sparse``), or an argument cannot be used.
        UnsupportedOperation: If the network cannot be traced, takes only one number of images, or if what it makes of
            an image is seen to depend on others (BatchNorm without stored statistics).

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
        >>> x = torch.randn(2, 3, 4, 4)
        >>> compiled = compile(model, example_input=x, threads=1)
        >>> torch.allclose(compiled(x), model(x), atol=1e-5)
        True
    """
    if importlib.util.find_spec("numba") is None:
        raise InvalidInput("pathex.compile needs numba: pip install 'pathex[sparse]'")
    from pathex.sparse.choice import Choice, measured
    from pathex.sparse.network import CompiledNetwork
    from pathex.sparse.program import meet
    from pathex.sparse.team import Team

    example_input = check_example(example_input)
    if not isinstance(choice, str | Choice | None):
        raise InvalidInput(
            f"choice is {type(choice).__name__}; allowed: that of a compiled network, sparse, dense, channels-last"
        )
    team = Team(check_integer("threads", torch.get_num_threads() if threads is None else threads))
    with torch.inference_mode(False):
        own = copied(own_module(model)).to("cpu", torch.float32).eval()
        if mask is not None:
            make_permanent(own, mask)
        x = example_input.detach().to("cpu", torch.float32)
        graph = trace(own, x)
    images = graph.output.batched and (graph.output.shape or (0,))[0] == 2
    if graph.fixed_batch is not None or not images or len(graph.inputs) != 1:
        raise UnsupportedOperation("pathex.compile needs a network of one input, for any number of images")
    with torch.no_grad():
        reading = Reading(graph, own, _attention(graph, own, x))
    if isinstance(choice, str):
        ways = {layer.name: choice for layer in reading.layers.values()}
        choice = Choice(ways, ways)
    with torch.inference_mode():
        if meet(reading, x[:1], team):
            raise UnsupportedOperation(
                "what the network makes of an image depends on other images (BatchNorm without stored statistics, or an"
                " operation over dimension 0): pathex.compile cannot compute it in parts"
            )
        choice = measured(reading, x, team) if choice is None else choice
    return CompiledNetwork(reading, choice, team)


def check_example(example_input: object) -> Tensor:
    """The images, if they are a tensor: kernels are for networks of one input."""
    known = isinstance(example_input, Tensor) and example_input.is_floating_point() and example_input.dim()
    if not isinstance(example_input, Tensor) or not known or not len(example_input):
        raise InvalidInput(
            f"example_input is {type(example_input).__name__}; allowed: one floating-point tensor of at least one image"
            " (N, C, H, W), for a network of one input"
        )
    return example_input


def check_ways(ways: object, names: Collection[str], kinds: Collection[str]) -> None:
    """Refuse what is no choice of one of some ways for each layer."""
    odd = sorted(map(repr, set(ways) ^ set(names))) if isinstance(ways, Mapping) else [repr(ways)]
    if odd or not isinstance(ways, Mapping):
        raise InvalidInput(f"choice must give {', '.join(kinds)} by name for each layer, no more: not so for {odd[0]}")
    check_names("way to compute a layer", ways.values(), kinds)


def _attention(graph: Graph, model: nn.Module, x: Tensor) -> dict[Node, Features]:
    """For each attention the features that matter, where kept weights leave others constant."""
    if not any(node.op == "scaled_dot_product_attention" for node in graph.nodes):
        return {}
    kept = {name: parameter.detach() != 0 for name, parameter in model.named_parameters() if parameter.dim() > 1}
    try:
        found = read_channels(model, kept, x)[0].attention
    except UnsupportedOperation:  # such as a network that does not run in float64
        return {}
    features = {node: Features.of(*known) for node, known in found.items()}
    return {node: each for node, each in features.items() if each is not None}
