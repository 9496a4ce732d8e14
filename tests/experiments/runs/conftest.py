import pytest

from pathex.train import loop


@pytest.fixture
def settings(small, tmp_path):
    own = {"model": "model_factories:tiny", "model_options": {"width": 4}, "out": str(tmp_path / "runs")}
    return small | own | {"rounds": 2, "images_per_class": 2, "batch_size": 16, "augment": "crop-flip"}


@pytest.fixture
def firsts(monkeypatch):
    """What each training began with: the first checkpoint of each folder, and how many momenta it had."""
    seen, original = {}, loop.save_checkpoint

    def save(path, state):
        if path.name == "last.ckpt" and path.parent not in seen:
            model = {name: tensor.clone() for name, tensor in state["model"].items()}
            seen[path.parent] = {**state, "model": model, "memory": len(state["optimizer"]["state"])}
        original(path, state)

    monkeypatch.setattr(loop, "save_checkpoint", save)
    return seen
