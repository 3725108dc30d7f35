"""Damaged folders of runs that were cut off: gone on with where a checkpoint and its rows are whole, or refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import torch

from align.checkpoints import FILES
from align.experiment import _opened
from align.locks import unlock
from align.places import Place, newest, place
from align.rows import LINES, RunError
from align.runs import read
from tests.fuzz import bad
from tests.fuzz.test_runs import damage, spoil
from tests.fuzz.trial import attempt, fuzzed
from tests.runs.test_places import META, cut_off, settings

WRITTEN = (*LINES, "config.yaml", "meta.json", "status.json", ".lock", "error.log", "adapter", "sent", "checkpoints",
           "checkpoints/step-000002", "checkpoints/.step-000009.tmp")  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of four rows with a checkpoint after each of the first three, and its experiment."""
    root = tmp_path_factory.mktemp("stopped")
    e = settings(root, f"run_dir={root}/run", "resume=true")
    whole = cut_off(Place(root / "whole"), e, rows=3)
    with (whole / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "step": 4}\n')
    return whole, e


def damage_checkpoint(rng, folder, whole) -> bool:
    """Of one file of it, which was as `whole`; at times signed anew, as whoever sent it could. -> whether it was"""
    file = folder / rng.choice((*FILES, "manifest.json"))
    if not file.is_file() or file.is_symlink():
        return False
    if rng.random() < 0.2:
        bad.spoil(rng, file)
        return False
    if file.name == "manifest.json":
        spoil(rng, file)
        return False
    if file.name == "state.pt" and rng.random() < 0.5:
        rest = torch.load(whole / file.name, weights_only=True)
        key = rng.choice(("step", "run", "probed"))
        torch.save(rest | {key: bad.changed(rng, rest.get(key), 2)}, file)
    else:
        file.write_bytes(bad.damaged(rng, file.read_bytes()))
    if signed := rng.random() < 0.7 and all((folder / name).is_file() for name in FILES):
        sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
        bad.removed(folder / "manifest.json")
        (folder / "manifest.json").write_text(json.dumps(sums))
    return signed


def put(rng, path) -> None:
    """A link, a pipe, a folder or a file where a run writes."""
    bad.removed(path)
    way = rng.randrange(5)
    if way == 0:
        path.symlink_to(rng.choice(("/dev/zero", "..", path.name)))
    elif way == 1:
        os.mkfifo(path)
    elif way == 2:
        path.mkdir()
    elif way == 3:
        path.write_bytes(rng.choice(bad.RAW))


def gone_on(e):
    """(where it goes on, what is then in its folder); None where there is nothing to go on with but a page."""
    where = place(e)
    if where.finished:
        return None
    start = newest(where, META)
    run = _opened(e, where, META, start)
    for file in run._files.values():
        file.close()
    unlock(run._lock)
    return start, read(where.path)


@fuzzed(250)
def test_damaged_runs_are_gone_on_with_or_refused(stopped, rng):
    whole, e = stopped
    run = bad.copied(whole, whole.with_name("run"))
    signed = False
    for _ in range(rng.randrange(1, 4)):
        way = rng.random()
        if way < 0.5:
            damage(rng, run, 1)
        elif way < 0.85:
            one = f"checkpoints/step-00000{rng.choice('1233')}"
            signed |= damage_checkpoint(rng, run / one, whole / one)
        elif (path := run / rng.choice(WRITTEN)).parent.is_dir():
            put(rng, path)
    found = attempt("resume", lambda: gone_on(e), RunError)
    if found is None:
        return
    start, record = found
    assert start is None or start.step in (1, 2, 3)
    sizes = start.run["sizes"] if start else dict.fromkeys(LINES, 0)
    assert {name: (run / name).stat().st_size for name in LINES} == sizes
    assert record.state == "running" and len(record.rows) <= 3
    if start is not None and not signed:
        assert torch.equal(start.weights["w"], torch.full((2, 3), float(start.step)))


def test_whole_it_goes_on_from_its_last_checkpoint(stopped):
    whole, e = stopped
    bad.copied(whole, whole.with_name("run"))
    start, record = gone_on(e)
    assert start.step == 3 and [row["step"] for row in record.rows] == [1, 2, 3]
    shutil.rmtree(whole.with_name("run"))
    (whole.with_name("run")).mkdir()
    assert gone_on(e)[0] is None
