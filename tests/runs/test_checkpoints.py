"""Checkpoints are whole or not there, damage is noticed, and nothing in them is executed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from accelerate import Accelerator

from align import checkpoints
from align.checkpoints import FILES, Keeper, Snapshot, prune, restore_rng, rng_state, snapshots, write
from align.rows import RunError
from align.schema import Checkpoint

PARTS = (*FILES, "manifest.json")


def snapshot(step: int, run: Any = None) -> Snapshot:
    """Everything a trainer may put in: an optimizer's state, None, tuples, nested lists."""
    weights = {"w": torch.full((2, 3), float(step)), "half": torch.ones(3, dtype=torch.bfloat16)}
    adam = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.999), "lr": 1e-4}]}
    state = {"optimizer": adam, "kl_coef": None, "moments": [0, 0.0, 0.5], "drawn": step}
    return Snapshot(step, weights, state, run or {"counters": {"prompts": 4}}, {"reference_gold": None}, [rng_state()])


def steps(folder: Path) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [found.step for found in snapshots(folder)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what is kept ---


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    made = snapshot(20)
    assert names(write(tmp_path, made)) == sorted(PARTS)
    (found,) = snapshots(tmp_path)
    assert (found.step, found.state, found.run, found.probe) == (20, made.state, made.run, made.probe)
    assert found.weights.keys() == made.weights.keys()
    assert all(torch.equal(found.weights[key], made.weights[key]) for key in made.weights)
    assert found.weights["half"].dtype == torch.bfloat16


def test_no_folder_holds_no_checkpoints(tmp_path):
    assert steps(tmp_path / "checkpoints") == []


def test_the_newest_comes_first_also_beyond_six_digits(tmp_path):
    for step in (10, 999_990, 1_000_000, 20):
        write(tmp_path, snapshot(step))
    assert steps(tmp_path) == [1_000_000, 999_990, 20, 10]


@pytest.mark.parametrize(("keep", "left"), [(1, [40]), (2, [40, 30]), (9, [40, 30, 20, 10])])
def test_as_many_are_kept_as_asked_for(tmp_path, keep, left):
    for step in (10, 20, 30, 40):
        write(tmp_path, snapshot(step))
        prune(tmp_path, keep, step)
    assert steps(tmp_path) == left
    assert len(names(tmp_path)) == len(left)


def test_what_is_later_than_the_run_does_not_push_out_what_it_has_just_saved(tmp_path):
    """The newest was damaged, so the run went back to an earlier one."""
    for step in (10, 30):
        write(tmp_path, snapshot(step))
    damage(tmp_path / "step-000030" / "state.pt")
    write(tmp_path, snapshot(20))
    prune(tmp_path, 1, 20)
    assert steps(tmp_path) == [20]
    assert names(tmp_path) == ["step-000020"]


# --- half written ---


@pytest.mark.parametrize("killed_in", ["save_file", "save", "_flushed_sha256", "rename"])
def test_a_checkpoint_that_was_being_written_is_not_one_and_goes_with_the_next(tmp_path, monkeypatch, killed_in):
    write(tmp_path, snapshot(10))
    owner = {"save": torch, "rename": Path}.get(killed_in, checkpoints)
    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt):
        during.setattr(owner, killed_in, killed)
        write(tmp_path, snapshot(20))
    assert names(tmp_path) == [".step-000020.tmp", "step-000010"]
    assert [found.step for found in snapshots(tmp_path)] == [10]
    write(tmp_path, snapshot(30))
    assert names(tmp_path) == ["step-000010", "step-000030"]


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_checkpoint_that_was_being_removed_is_not_one(tmp_path, monkeypatch):
    for step in (10, 20):
        write(tmp_path, snapshot(step))
    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt):
        during.setattr(checkpoints.shutil, "rmtree", killed)
        prune(tmp_path, 1, 20)
    assert names(tmp_path) == ["step-000010", "step-000020"] and steps(tmp_path) == [20]
    prune(tmp_path, 1, 20)
    assert names(tmp_path) == ["step-000020"]


def test_a_manifest_that_is_a_folder_goes_with_its_checkpoint(tmp_path):
    for step in (10, 20):
        write(tmp_path, snapshot(step))
    (tmp_path / "step-000020" / "manifest.json").unlink()
    (tmp_path / "step-000020" / "manifest.json").mkdir()
    prune(tmp_path, 3, 10)
    assert names(tmp_path) == ["step-000010"]


# --- damaged ---


def damage(file: Path, place: float = 0.5) -> None:
    """One bit of one byte."""
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("file", PARTS)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
def test_a_flipped_bit_is_noticed_and_the_one_before_used(tmp_path, file, place):
    for step in (10, 20):
        write(tmp_path, snapshot(step))
    damage(tmp_path / "step-000020" / file, place)
    with pytest.warns(UserWarning, match="step-000020 is damaged .*the one before it is used"):
        found = [found.step for found in snapshots(tmp_path)]
    assert found == [10]


@pytest.mark.parametrize("file", PARTS)
@pytest.mark.parametrize("content", [None, b"", b"7", b"null", b"[]", b"{}", b'{"state.pt": 3}'])
def test_so_is_a_file_that_is_missing_or_another(tmp_path, file, content):
    for step in (10, 20):
        write(tmp_path, snapshot(step))
    (tmp_path / "step-000020" / file).unlink()
    if content is not None:
        (tmp_path / "step-000020" / file).write_bytes(content)
    with pytest.warns(UserWarning, match="step-000020 is damaged"):
        assert [found.step for found in snapshots(tmp_path)] == [10]


def test_one_that_cannot_be_read_now_is_not_damaged_and_nothing_is_done_without_it(tmp_path, monkeypatch):
    """A network file system that stalls: going on from an earlier one would remove this one."""
    for step in (10, 20):
        write(tmp_path, snapshot(step))
    whole = checkpoints._sha256

    def stale(path):
        if "step-000020" in str(path):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return whole(path)

    monkeypatch.setattr(checkpoints, "_sha256", stale)
    with pytest.raises(RunError, match=r"step-000020 cannot be read \(Stale file handle\); nothing was changed"):
        steps(tmp_path)
    monkeypatch.undo()
    assert steps(tmp_path) == [20, 10]


def test_a_checkpoint_of_before_probes_could_be_broken_off_is_read(tmp_path):
    folder = write(tmp_path, snapshot(20))
    rest = torch.load(folder / FILES[1], weights_only=True)
    del rest["probed"]
    torch.save(rest, folder / FILES[1])
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / "manifest.json").write_text(json.dumps(sums))
    (found,) = snapshots(tmp_path)
    assert found.probed


def test_a_damaged_checkpoint_is_written_over(tmp_path):
    damage(write(tmp_path, snapshot(20)) / "state.pt")
    write(tmp_path, snapshot(20))
    assert [found.step for found in snapshots(tmp_path)] == [20]


class Payload:
    """What unpickling it would do is to make a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_an_object_in_a_checkpoint_is_refused_and_not_executed(tmp_path, how):
    folder, made = write(tmp_path / "c", snapshot(20)), tmp_path / "made"
    state = folder / "state.pt"
    if how == "pickle":
        state.write_bytes(pickle.dumps({"step": Payload(made)}))
    else:
        torch.save({"step": Payload(made)}, state)
    sign(folder)
    with pytest.warns(UserWarning, match="step-000020 is damaged"):
        assert list(snapshots(tmp_path / "c")) == []
    assert not made.exists()
    pickle.loads(pickle.dumps(Payload(made)))
    assert made.exists(), "the object would have done something"


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    folder = write(tmp_path, snapshot(20))
    torch.save({"w": torch.zeros(1)}, folder / "weights.safetensors")
    sign(folder)
    with pytest.warns(UserWarning, match="step-000020 is damaged"):
        assert list(snapshots(tmp_path)) == []


def sign(folder: Path) -> None:
    """A manifest that matches, as whoever changed the files would write it."""
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / "manifest.json").write_text(json.dumps(sums))


# --- random streams ---


def drawn() -> tuple[float, ...]:
    return (random.random(), random.gauss(0, 1), numpy.random.rand(), numpy.random.randn(), float(torch.randn(())))


def test_random_streams_go_on_where_they_were(tmp_path):
    drawn()  # gauss and randn now hold the second of a pair
    write(tmp_path, snapshot(10))
    expected = [drawn() for _ in range(3)]
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    (found,) = snapshots(tmp_path)
    restore_rng(found.rng[0])
    assert [drawn() for _ in range(3)] == expected


@pytest.mark.parametrize(("stopped", "rank", "taken"), [(1, 0, 0), (2, 0, 0), (2, 1, 1), (1, 1, 0), (2, 3, 1)])
def test_a_process_takes_up_its_streams_and_a_new_one_those_of_one_that_was_there(tmp_path, stopped, rank, taken):
    made = snapshot(10)
    streams, expected = [], []
    for _ in range(stopped):
        streams.append(rng_state())
        expected.append(drawn())
    goes_on = keeper(tmp_path, start=Snapshot(10, made.weights, made.state, made.run, made.probe, streams))
    goes_on.accelerator = SimpleNamespace(process_index=rank, num_processes=max(rank + 1, 2))
    goes_on.restore_rng()
    assert drawn() == expected[taken]
    assert bool(goes_on.recut) is (stopped != goes_on.accelerator.num_processes)


# --- when ---


def keeper(folder: Path, every: int = 2, length: int = 8, start: Snapshot | None = None) -> Keeper:
    return Keeper(folder, Checkpoint(every, keep=9), length, Accelerator(cpu=True), dict, start)


@pytest.mark.parametrize(("begun", "saved"), [(None, [6, 4, 2]), (4, [6])])
def test_a_run_saves_on_its_way_and_not_where_it_starts_goes_on_or_ends(tmp_path, begun, saved):
    keeping = keeper(tmp_path, start=None if begun is None else snapshot(begun))
    for step in range(begun or 0, 9):
        keeping.save(step, torch.nn.Linear(1, 1), dict)
    assert steps(tmp_path) == saved
