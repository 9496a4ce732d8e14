"""A network traced once, as a graph of operators that everything else reads."""

from pathex.graph.cost import Cost, cost, held_bytes
from pathex.graph.graph import Graph, Node, arguments_of
from pathex.graph.heap import freed_memory_kept
from pathex.graph.inputs import Images, Inputs, Tensors, arguments, concatenated, each, ones, tensors_in
from pathex.graph.interpreter import Interpreter
from pathex.graph.operators import (
    ACTIVATIONS,
    CREATIONS,
    DECISIONS,
    FORMED_LIKE,
    FUNCTIONS,
    NEVER_ZERO,
    STRUCTURE,
    WEIGHTED,
    breaks_in_channels_last,
    has_convolution_that_breaks,
    words,
)
from pathex.graph.state import compute_dtype, copied, tf32_products, untouched
from pathex.graph.trace import Output, failing_module, first_names, first_tensor, trace

__all__ = [
    "ACTIVATIONS",
    "CREATIONS",
    "DECISIONS",
    "FORMED_LIKE",
    "FUNCTIONS",
    "NEVER_ZERO",
    "STRUCTURE",
    "WEIGHTED",
    "Cost",
    "Graph",
    "Images",
    "Inputs",
    "Interpreter",
    "Node",
    "Output",
    "Tensors",
    "arguments",
    "arguments_of",
    "breaks_in_channels_last",
    "compute_dtype",
    "concatenated",
    "copied",
    "cost",
    "each",
    "failing_module",
    "first_names",
    "first_tensor",
    "freed_memory_kept",
    "has_convolution_that_breaks",
    "held_bytes",
    "ones",
    "tensors_in",
    "tf32_products",
    "trace",
    "untouched",
    "words",
]
