"""What each of several processes does in the tests of scoring together; results go to files."""

import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pathex
from pathex.graph import held_bytes, trace
from pathex.masks import prunable_weights
from pathex.models import CifarResNet
from pathex.paths import lowered

METHODS = pathex.methods()
OPTIONS = {
    "px": [{"redraw": True}, {"calibration": "running"}, {"calibration_images": 4}],
    "px-literal": [{"calibration": "running"}],
    "snip": [{"calibration": "batch"}],
    "grasp": [{"calibration": "batch"}],
    "ntk-sap": [{"inputs": "data", "draws": 2}, {"exact": True}, {"calibration": "train"}],
    "ntk-diagonal": [{"projections": 3}, {"calibration": "train"}],
    "fisher-diagonal": [{"projections": 2, "labels": "model"}],
    "prospr": [{"calibration": "batch", "steps": 1}],
}
FEW = {"phew": {"walks": 50}}
IN_CHUNKS = ("px", "px-literal", "synflow-l2", "ntk-sap")
BASIC = [
    *((method, FEW.get(method, {}), 2) for method in METHODS),
    ("px", {"redraw": True}, 0),
    ("ntk-diagonal", {"projections": 3}, 2),
]
"""Method, its options, and how many images fit into a micro-batch; with none, calibration goes in chunks."""

ALL = BASIC + [
    (method, options, per_part)
    for method in METHODS
    for options in [FEW.get(method, {}), *OPTIONS.get(method, [])]
    for per_part in (2, 0)
    if (per_part or method in IN_CHUNKS) and (method, options, per_part) not in BASIC
]


def network(seed=3):
    """A ResNet-8 in float64 with affine parameters and statistics that are not 1 and 0."""
    torch.manual_seed(seed)
    net = CifarResNet(8, num_classes=3, width=2).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def images(count=9):
    x = torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return x, torch.arange(count) % 3


def batches(x, y, size=2):
    return list(zip(x.split(size), y.split(size), strict=True))


def memory(per_part):
    """A budget for micro-batches of so many images in a replayed pass.

    Beside them are 16 bytes a weight and two copies of the images, or half of the budget if that is less.
    """
    x = images()[0]
    room = held_bytes(lowered(trace(network(), x)), x.dtype) * (per_part + 0.1)
    held = 16 * sum(weight.numel() for weight in prunable_weights(network()).values()) + 2 * x.nbytes
    return int(room + min(room, held))


def quiet(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pathex.errors.PathexWarning)
        return call(*args, **kwargs)


def scores(cases):
    """Scores by case, with an odd number of micro-batches and of batches."""
    data = batches(*images())
    return {
        key(*case): quiet(pathex.score, network(), case[0], data, memory=memory(case[2]), seed=5, **case[1])
        for case in cases
    }


def key(method, options, per_part):
    return f"{method} {options} {per_part}"


def masks():
    x, y = images()
    shared = {"sparsity": 0.9, "data": batches(x, y)}
    return {
        "px": quiet(pathex.prune, network(), "px", rounds=4, memory=memory(2), **shared).mask,
        "px in chunks": quiet(pathex.prune, network(), "px", rounds=2, memory=memory(0), **shared).mask,
        "adaptive": quiet(
            pathex.prune, network(), "px", rounds=6, schedule="adaptive:0.1", memory=memory(2), **shared
        ).mask,
        "effective": quiet(
            pathex.prune, network(), "force", rounds=2, budget="effective", calibration="batch", memory=1, **shared
        ).mask,
    }


def joined_parts():
    """All that a sampler for two processes delivers, one process after the other: the first image twice."""
    x, y = images()
    order = [0, 2, 4, 6, 8, 1, 3, 5, 7, 0]
    return x[order], y[order]


def parts(rank, size):
    """Every process reads its own part, by a sampler or the same images in another order."""
    x, y = images()
    data = TensorDataset(x, y)
    loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, size, rank, shuffle=False))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(rank))
    return {
        "px": pathex.score(network(), "px", loader, memory=memory(2)),
        "snip": pathex.score(network(), "snip", loader),
        "px without labels": pathex.score(network(), "px", x[rank::size], memory=memory(2)),
        "another order": pathex.score(network(), "px", batches(x[order], y[order], 3 - rank), memory=memory(2)),
        "another order, in train mode": pathex.score(network(), "snip", batches(x[order], y[order], 3 - rank)),
    }


def work(rank):
    """How many batches a process has run, of five."""
    ran = []

    def loss(outputs, labels):
        ran.append(len(labels))
        return F.cross_entropy(outputs, labels)

    pathex.score(network(), "snip", batches(*images()), loss=loss)
    together = len(ran)
    if rank == 0:  # alone, while the other waits for nothing
        alone = pathex.score(network(), "snip", batches(*images()), loss=loss, group=None)
        assert len(ran) - together == 5
        return {"ran": together, "alone": alone}
    return {"ran": together}


def failures(rank):
    """Each call fails in one process, or differs between them: the message that every process raises."""
    x, y = images()
    data = batches(x, y)

    def custom(model, given, mask):
        if rank == 1:
            raise ZeroDivisionError("one over none")
        return {name: torch.ones(entry.shape) for name, entry in mask.items()}

    def other_shape(model, given, mask):
        return {name: torch.ones(2 if rank else entry.shape) for name, entry in mask.items()}

    def loss(outputs, labels):
        if rank == 1:
            raise pathex.errors.UnknownName("loss", "mine", ["yours"])
        return F.cross_entropy(outputs, labels)

    def stop(row, mask):
        if rank == 1 and row["round"] == 2:
            raise KeyError("second round")

    broken = x.clone()
    if rank == 1:
        broken[3] = float("nan")
    other = network(3 + rank)
    statistics = network()
    running = next(b for n, b in statistics.named_buffers() if n.endswith("running_mean"))
    if rank == 1:
        running[0] += 1
    calls = {
        "an image is NaN": lambda: pathex.score(network(), "px", broken),
        "unknown method": lambda: pathex.score(network(), "px" if rank else "xp", x),
        "own method": lambda: pathex.prune(network(), custom, sparsity=0.5, data=x),
        "shape of scores": lambda: pathex.score(network(), other_shape, x),
        "loss": lambda: pathex.score(network(), "snip", data, loss=loss),
        "on_round": lambda: pathex.prune(network(), "px", sparsity=0.5, data=x, rounds=4, on_round=stop),
        "in every process": lambda: pathex.score(network(), "px", x, memory="much"),
        "seed": lambda: pathex.score(network(), "random", x, seed=rank),
        "weights": lambda: pathex.score(other, "px", x),
        "statistics": lambda: pathex.score(statistics, "px", x),
        "rounds": lambda: pathex.prune(network(), "px", sparsity=0.5, data=x, rounds=2 + rank),
        "option": lambda: pathex.score(network(), "px", x, redraw=bool(rank)),
        "shapes": lambda: pathex.score(network(), "px", x[..., : 8 - 2 * rank]),
        "no group": lambda: pathex.score(network(), "px", x, group="some"),
    }
    return {name: raised(call) for name, call in calls.items()}


def raised(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def wrapped(rank):
    """A model in DDP, in groups of one and in a group of the last two."""
    x, _ = images()
    groups = [dist.new_group([0]), dist.new_group([1]), dist.new_group([0, 1])]
    ddp = DistributedDataParallel(network())
    found = {"ddp": pathex.prune(ddp, "px", sparsity=0.5, data=x, rounds=2).mask}
    handle = pathex.attach(ddp, found["ddp"])
    found["zeros"] = {name: ddp.module.get_parameter(name) == 0 for name in found["ddp"]}
    handle.remove()
    if rank < 2:
        found["alone"] = pathex.score(network(), "px", x * (1 + rank), group=groups[rank])
        found["two"] = pathex.score(network(), "px", x, memory=memory(2), group=groups[2])
    return found


def sharded(rank):
    """A model whose weights are spread over the processes: trained with a mask."""
    from torch.distributed.fsdp import fully_shard

    x, y = images(8)
    mask = pathex.prune(network(), "magnitude", sparsity=0.7, data=x).mask
    model = network()
    for part in (model.fc, model):
        fully_shard(part)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    found = {"mask": mask, "refused": raised(lambda: pathex.score(model, "magnitude", x))}
    handle = pathex.attach(model, mask, optimizer)
    for step in range(3):
        optimizer.zero_grad()
        own = slice(4 * rank, 4 * rank + 4)
        F.cross_entropy(model(x[own]), y[own]).backward()
        grads = {name: whole(model.get_parameter(name).grad) for name in mask}
        found[f"gradients {step}"] = grads
        optimizer.step()
        found[f"weights {step}"] = {name: whole(model.get_parameter(name)) for name in mask}
    ones = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(ones)
    found["loaded"] = {name: whole(model.get_parameter(name)) for name in mask}
    handle.remove()
    model.load_state_dict(ones)
    found["free"] = {name: whole(model.get_parameter(name)) for name in mask}
    pathex.make_permanent(model, mask)
    found["permanent"] = {name: whole(model.get_parameter(name)) for name in mask}
    return found


def whole(tensor):
    return tensor.full_tensor().detach().clone()


def of_two(rank):
    return {
        "scores": scores(BASIC),
        "masks": masks(),
        "parts": parts(rank, 2),
        "work": work(rank),
        "failures": failures(rank),
        "wrapped": wrapped(rank),
        "sharded": sharded(rank),
    }


def of_more(rank):
    return {"scores": scores(ALL), "masks": masks()}


def start(rank, size, what, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    torch.save(what(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


def run(what, size, folder):
    """Results of each process."""
    mp.spawn(start, (size, what, folder), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
