"""What several processes find together is what one finds alone; each of them checks that."""

from functools import partial

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pathex
from brute_force.cases import norms
from pathex.graph import held_bytes, trace
from pathex.masks import prunable_weights
from pathex.models import CifarResNet
from pathex.paths import lowered
from variants import SCORERS

METHODS = SCORERS
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
    for norm in norms(net):
        for entry, middle in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
            nn.init.uniform_(entry, middle - 0.4, middle + 0.4)
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


def raised(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def assert_same(found, expected):
    """Equal but for the order of sums in float64, which is another one over processes than in one."""
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-9, atol=1e-9 * float(score.abs().max()))


def compare(calls, same):
    """Every process finds together what one finds alone; they share out who looks at which call."""
    rank, size, found = dist.get_rank(), dist.get_world_size(), []
    for call in calls:
        found.append([None] * size)
        dist.all_gather_object(found[-1], call())
    for call, results in list(zip(calls, found, strict=True))[rank::size]:
        alone = call(group=None)
        for together in results:
            same(together, alone)


def check_scores(cases):
    """With an odd number of micro-batches and of batches."""

    def same(together, alone):
        # They differ between weights, so that equality says something.
        assert len(torch.cat([score.double().flatten() for score in alone.values()]).unique()) > 50
        assert_same(together, alone)

    score = partial(pathex.score, data=batches(*images()), seed=5)
    compare([partial(score, network(), method, memory=memory(part), **more) for method, more, part in cases], same)


def check_masks():
    def same(together, alone):
        assert abs(alone.sparsity - 0.9) < 1e-3
        assert together == alone and together.metadata == alone.metadata

    prune = partial(pathex.prune, sparsity=0.9, data=batches(*images()))
    calls = [
        *(partial(prune, network(), "px", rounds=2, memory=memory(per_part)) for per_part in (2, 0)),
        partial(prune, network(), "px", rounds=4, memory=memory(2), schedule="adaptive:0.1"),
        partial(prune, network(), "force", rounds=2, memory=1, budget="effective", calibration="batch"),
        partial(prune, network(), "cts", epochs=2, batch_size=4),
    ]
    compare([lambda call=call, **group: call(**group).mask for call in calls], same)


def check_parts(rank):
    """Parts of the images are joined; the same ones in another order count once."""
    x, y = images()
    joined = torch.tensor([0, 2, 4, 6, 8, 1, 3, 5, 7, 0])  # from samplers, one process after the other: the first twice
    whole = [pair for part in joined.split(5) for pair in batches(x[part], y[part])]
    sampler = DistributedSampler(TensorDataset(x, y), 2, rank, shuffle=False)
    loader = DataLoader(TensorDataset(x, y), batch_size=2, sampler=sampler)
    orders = [torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    other = [batches(x[order], y[order], 3 - number) for number, order in enumerate(orders)]
    for method, given, expected, options in (
        ("px", loader, whole, {"memory": memory(2)}),
        ("snip", loader, whole, {}),
        ("px", x[rank::2], x, {"memory": memory(2)}),
        ("px", other[rank], other[0], {"memory": memory(2)}),
        ("snip", other[rank], other[0], {}),
    ):
        found = pathex.score(network(), method, given, **options)
        assert_same(found, pathex.score(network(), method, expected, group=None, **options))


def work_alone(rank):
    """The scores of a process by itself, which runs all five batches; together each runs three."""
    ran = []

    def loss(outputs, labels):
        ran.append(len(labels))
        return F.cross_entropy(outputs, labels)

    score = partial(pathex.score, network(), "snip", batches(*images()), loss=loss)
    score()
    assert len(ran) == 3
    alone = score(group=None) if rank == 0 else None  # while the other waits for nothing
    assert len(ran) == (8 if rank == 0 else 3)
    return alone


def differs(what):
    return f"InvalidInput: {what} of process 1 is not that of process 0"


def from_one(process, kind, said):
    """The messages of two processes, of which one fails."""
    return [f"{kind}: {said if rank == process else f'process {process} of 2: {said}'}" for rank in range(2)]


def check_failures(rank):
    """Each call fails in one process, or differs between them: every process raises."""
    x, y = images()

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

    broken, model, other, statistics = x.clone(), network(), network(3 + rank), network()
    if rank == 1:
        broken[3] = float("nan")
        statistics.bn.running_mean[0] += 1
    score, px = partial(pathex.score, model), partial(pathex.score, model, "px")
    prune = partial(pathex.prune, model, sparsity=0.5, data=x)
    shapes = "InvalidInput: all images of the pruning set must have one shape, not [(3, 8, 6), (3, 8, 8)]"
    group = "InvalidInput: group must be a torch.distributed.ProcessGroup, 'default' or None, not 'some'"
    method, shape = "unknown method 'xp'", "the method's score of 'conv.weight' has shape (2,)"
    over = "PathexError: process 1 of 2: one over none (ZeroDivisionError)"
    second = "PathexError: process 1 of 2: 'second round' (KeyError)"
    cases = [
        (lambda: px(x, memory="much"), "InvalidInput: memory must be a positive number of bytes"),
        (lambda: px(x, redraw=bool(rank)), differs("option 'redraw'")),
        (lambda: px(x[..., : 8 - 2 * rank]), shapes),
        (lambda: px(x, group="some"), group),
        (lambda: score("random", x, seed=rank), differs("seed")),
        (lambda: pathex.score(other, "px", x), differs("tensor 'conv.weight'")),
        (lambda: pathex.score(statistics, "px", x), differs("tensor 'bn.running_mean'")),
        (lambda: prune("px", rounds=2 + rank), differs("rounds")),
        (lambda: px(broken), *from_one(1, "InvalidInput", "batch 0 of data holds")),
        (lambda: score("px" if rank else "xp", x), *from_one(0, "UnknownName", method)),
        (lambda: prune(custom), over, "ZeroDivisionError: one over none"),
        (lambda: score(other_shape, x), *from_one(1, "InvalidInput", shape)),
        (lambda: score("snip", batches(x, y), loss=loss), *from_one(1, "UnknownName", "unknown loss 'mine'")),
        (lambda: prune("px", rounds=4, on_round=stop), second, "KeyError: 'second round'"),
    ]
    for call, *messages in cases:
        said = raised(call)
        assert said.startswith(messages[min(rank, len(messages) - 1)]), said


def check_groups(rank):
    """A model in DDP has the names of its module; groups of one and of two score by themselves."""
    x, _ = images()
    ddp, options = DistributedDataParallel(network()), {"sparsity": 0.5, "data": x, "rounds": 2}
    mask = pathex.prune(ddp, "px", **options).mask
    assert mask == pathex.prune(network(), "px", group=None, **options).mask
    handle = pathex.attach(ddp, mask)
    assert all(torch.equal(ddp.module.get_parameter(name) != 0, keep) for name, keep in mask.items())
    handle.remove()
    groups = [dist.new_group(ranks) for ranks in ([0], [1], [0, 1])]
    for group, data, options in ((groups[rank], x * (1 + rank), {}), (groups[2], x, {"memory": memory(2)})):
        together, alone = (pathex.score(network(), "px", data, group=each, **options) for each in (group, None))
        assert_same(together, alone)


def check_sharded(rank):
    """Masks hold on weights that are spread over the processes, which cannot be scored."""
    x, y = images(8)
    mask = pathex.prune(network(), "magnitude", sparsity=0.7, data=x).mask
    model = network()
    for part in (model.fc, model):
        fully_shard(part)
    said = raised(lambda: pathex.score(model, "magnitude", x))
    assert "is spread over processes: score the model before fully_shard" in said

    def weights():
        return {name: model.get_parameter(name).full_tensor().detach().clone() for name in mask}

    def holds(tensors):
        return all(torch.equal(tensor != 0, mask[name]) for name, tensor in tensors.items())

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    handle, trained = pathex.attach(model, mask, optimizer), []
    own = slice(4 * rank, 4 * rank + 4)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x[own]), y[own]).backward()
        for name, keep in mask.items():
            gradient = model.get_parameter(name).grad.full_tensor()
            assert gradient[keep].any() and not gradient[~keep].any()
        optimizer.step()
        trained.append(weights())
        assert not any(trained[-1][name][~keep].any() for name, keep in mask.items())
    assert not any(torch.equal(trained[0][name], trained[2][name]) for name in mask)
    ones = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(ones)
    assert holds(weights())
    handle.remove()
    model.load_state_dict(ones)
    assert all(weight.all() for weight in weights().values())
    pathex.make_permanent(model, mask)
    assert holds(weights())


def of_two(rank):
    check_scores(BASIC)
    check_masks()
    check_parts(rank)
    check_failures(rank)
    check_groups(rank)
    check_sharded(rank)
    return work_alone(rank)


def of_more(rank):
    check_scores(ALL)
    check_masks()


def start(rank, size, what, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    torch.save(what(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


def run(what, size, folder):
    """Results of each process."""
    mp.start_processes(start, (size, what, folder), nprocs=size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
