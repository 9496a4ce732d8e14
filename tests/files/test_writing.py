"""Writes are whole or not there, reach the disk, and clear what dead processes left."""

import os
import subprocess
import sys

import pytest

from damage import spoil
from pathex.files import changed, digest, read, replacing, write_json
from refusals import refused


def test_a_write_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((tmp_path / "a.json").exists()))
    write_json(tmp_path / "a.json", {"a": 1})
    assert seen == [False, True]  # the file, then the folder with its name
    assert read(tmp_path / "a.json") == {"a": 1}


@pytest.mark.skipif(os.name != "posix", reason="signals tell which processes live")
def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead, alive, other = (tmp_path / f".{name}.tmp" for name in (f"a.json.{child.pid}", "a.json.1", "b.json.99999999"))
    for path in (dead, alive, other):
        path.write_text("half")
    write_json(tmp_path / "a.json", {})
    assert not dead.exists() and alive.exists() and other.exists()


def test_digests_tell_what_became_of_a_file(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.json"):
        raise RuntimeError
    for name in "abc":
        write_json(tmp_path / f"{name}.json", {"a": name})
    known = {f"{name}.json": digest(tmp_path / f"{name}.json") for name in "abc"}
    spoil(tmp_path / "a.json", None)
    spoil(tmp_path / "b.json", (tmp_path / "b.json").read_bytes().replace(b'"b"', b'"d"'))
    assert changed(tmp_path, known) == ["a.json is missing", "b.json changed since it was written"]
    assert changed(tmp_path, known, ["c.json", "other"]) == []
    with refused("b.json' cannot be read .it changed since it was written: its digest is another"):
        read(tmp_path / "b.json")
