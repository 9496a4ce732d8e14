import pytest
import torch
from torch import nn

import pathex
import several_processes as several
from pathex.distributed import ALONE, processes_of
from refusals import refused
from variants import SCORERS


def test_two_processes_find_what_one_finds(tmp_path):
    alone, _ = several.run(several.of_two, 2, tmp_path)
    several.assert_same(alone, pathex.score(several.network(), "snip", several.batches(*several.images())))
    assert {method for method, _, _ in several.BASIC} == set(SCORERS)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_more_processes_find_what_one_finds(size, tmp_path):
    several.run(several.of_more, size, tmp_path)


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_the_memory_gives_an_odd_number_of_micro_batches(monkeypatch):
    from pathex.scores import reader

    sizes, chunks = [], []
    run, calibrate = reader.Record.run, reader.calibrate
    monkeypatch.setattr(reader.Record, "run", lambda self, x: sizes.append(len(x)) or run(self, x))
    monkeypatch.setattr(reader, "calibrate", lambda m, x, **kw: chunks.append(kw.get("chunk")) or calibrate(m, x, **kw))
    for per_part, expected in ((2, [2, 2, 2, 2, 1]), (0, [1] * 9)):
        pathex.score(several.network(), "px", several.images()[0], memory=several.memory(per_part))
        assert sizes[-len(expected) :] == expected
    assert 1 <= (chunks[-1] or 0) < 5  # several chunks for each of two and three processes


def test_the_first_generation_of_fsdp_is_refused():
    named_so = type("FullyShardedDataParallel", (nn.Sequential,), {})  # torch's own needs a group
    with refused("flattens weights together"):
        pathex.score(named_so(nn.Linear(2, 2)), "px", torch.randn(2, 2))


def test_without_others_a_process_is_alone():
    assert processes_of() is ALONE and processes_of(None) is ALONE
    assert ALONE.all_gather({"a": 1}) == [{"a": 1}] and ALONE.broadcast(1, torch.device("cpu")) == 1
    assert ALONE.map([3, 1], lambda item: item + 1, torch.device("cpu")) == [4, 2]
    with pytest.raises(KeyError, match="mine"), ALONE.barrier(), ALONE.barrier():
        raise KeyError("mine")  # as it is


def test_sums_are_new_tensors_added_in_order():
    same = torch.ones(2, dtype=torch.float64)
    items = iter([1.0, 1e16, -1e16])

    def part(item):
        return {"a": item * same, "b": same.expand(2), "c": same}  # b and c are one tensor, as gradients may be

    found = ALONE.sum_over(items, part)
    assert found["a"].tolist() == [0.0, 0.0]  # (1 + 1e16) - 1e16; in another order it would be 1
    assert found["b"].tolist() == found["c"].tolist() == [3.0, 3.0]
    assert same.tolist() == [1.0, 1.0]
