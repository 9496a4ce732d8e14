import pytest

from pathex.train import loop

CHANGES = {"rounds": 2, "images_per_class": 2, "batch_size": 16, "augment": "crop-flip"}
TINY = {"model": "model_factories:tiny", "model_options": {"width": 4}}


@pytest.fixture
def settings(small, tmp_path):
    return small | CHANGES | TINY | {"out": str(tmp_path / "runs")}


@pytest.fixture(scope="session")
def settings_of_all(small, tmp_path_factory):
    return small | CHANGES | TINY | {"out": str(tmp_path_factory.mktemp("all") / "runs")}


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
