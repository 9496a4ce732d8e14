"""Everything about a network and about torch that scoring might disturb."""

import random
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten


def snapshot(model):
    entries = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: entry.detach().clone() for name, entry in entries.items()},
        "objects": {n: (id(e), e.data_ptr(), e._version, e.requires_grad, sorted(vars(e))) for n, e in entries.items()},
        "grads": {n: None if e.grad is None else (id(e.grad), e.grad.clone()) for n, e in entries.items()},
        "modules": {name: (module.training, sorted(vars(module))) for name, module in model.named_modules()},
        "hooks": [[*module._forward_hooks, *module._forward_pre_hooks] for module in model.modules()],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()),  # noqa: NPY002
        "functions": (F.relu, torch.relu, F.batch_norm, Tensor.relu, F.conv2d, Tensor.__add__, nn.ReLU.forward),
        "torch": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.matmul.fp32_precision,
            torch.backends.mkldnn.conv.fp32_precision,
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        ),
    }


def assert_same(found, expected):
    """Two snapshots, or nested results."""
    (leaves, form), (others, other_form) = tree_flatten(found), tree_flatten(expected)
    assert form == other_form
    for one, other in zip(leaves, others, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one is other or np.array_equal(one, other)


@contextmanager
def unchanged(model):
    """Whatever happens inside, errors that are caught there too, leaves the network and torch as they were."""
    before = snapshot(model)
    yield
    assert_same(snapshot(model), before)
