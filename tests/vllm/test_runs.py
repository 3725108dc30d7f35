"""Whole runs whose completions servers sample: the ruler, resuming, failing, and a server of the run's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from align import vllm_rollouts
from align.checkpoints import snapshots
from align.refusals import ConfigError
from align.rows import read_lines
from align.runs import read, stable
from align.vllm_rollouts import RolloutError
from align.vllm_server import OwnServer
from tests.end_to_end.helpers import BY_COMMAND, ROOT, TINY, execute, no_warmup, run
from tests.faults.child import start
from tests.vllm.rollouts import at

SERVED = ("sampling=vllm", "sampling.max_new_tokens=8", "sampling.vllm.seconds=20", "algo.prompts_per_step=2",
          "algo.group_size=4", "algo.optimizer.lr=0.01")  # fmt: skip
OWN = (*SERVED, f"sampling.vllm.python={sys.executable}")
FAKE = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'vllm' / 'package'}"}


@pytest.fixture(autouse=True)
def fake_vllm(monkeypatch):
    """`python -m vllm.entrypoints.openai.api_server` is the fake, and nothing waits between rounds."""
    monkeypatch.setattr(vllm_rollouts, "PAUSE", 0.0)
    for name, value in FAKE.items():
        monkeypatch.setenv(name, value)


def test_a_run_on_two_servers_is_finished_measured_as_every_other_and_leaves_them_as_they_were(fakes, tmp_path):
    one, two = fakes(), fakes()
    record = run(tmp_path, *no_warmup("grpo"), *SERVED, "steps=3", *at(one, two))
    local = run(tmp_path, *no_warmup("grpo"), *SERVED, "steps=3", "sampling.vllm=none")
    for row in record.phase("train"):
        assert row["sampler/gap"] < 1e-4
        assert row["importance/mean"] == pytest.approx(1, abs=1e-3) and row["importance/bounded"] == 0
    first, same = stable(record.phase("probe")[0]), stable(local.phase("probe")[0])
    assert first == same, "the ruler samples in this process"
    assert record.phase("train")[-1]["completions"] == local.phase("train")[-1]["completions"] == 24
    assert len(one.loaded) == len(two.loaded) == 3, "one adapter for each of three sets of weights"
    assert one.calls["/v1/completions"] + two.calls["/v1/completions"] == 24 + 6  # and a canary each
    assert not one.adapters and not two.adapters
    assert not list(record.path.glob("sent*"))
    assert not read_lines(record.path / "events.jsonl")


def test_it_is_the_run_that_it_is_whichever_server_samples(fakes, tmp_path):
    """Servers that are equal to the last bit, as the fakes are, give equal runs."""
    one, two, three = fakes(), fakes(), fakes()
    alone = run(tmp_path / "a", *no_warmup("grpo"), *SERVED, "steps=2", *at(one))
    both = run(tmp_path / "b", *no_warmup("grpo"), *SERVED, "steps=2", *at(two, three))
    assert alone.path.name == both.path.name
    assert [stable(row) for row in alone.rows] == [stable(row) for row in both.rows]


def test_a_run_whose_servers_fail_goes_on_where_it_stopped_to_the_same_end(fakes, tmp_path):
    settings = (*no_warmup("grpo"), *SERVED, "steps=4", "checkpoint.every=1", "sampling.vllm.retries=1")
    whole = run(tmp_path / "whole", *settings, *at(fakes()))
    bad = fakes()
    folder = tmp_path / "cut"
    bad.fault, bad.times = "", 2 * 9 + 4  # two rollouts of 8 and their canaries, and half of the third
    bad.after = "error"
    with pytest.raises(RolloutError, match="nothing was trained on this rollout"):
        execute(folder, *settings, *at(bad))
    (left,) = (path for path in folder.iterdir() if path.is_dir())
    assert read(left).state == "failed"
    assert [snapshot.step for snapshot in snapshots(left / "checkpoints")][0] == 2
    good = fakes()
    again = run(folder, *settings, "resume=true", *at(good))
    assert again.path == left
    assert [stable(row) for row in again.rows] == [stable(row) for row in whole.rows]
    assert len(good.answered) == 1 + 2 * 9, "the start; two rollouts with their canaries"


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        # requests before the server hangs, in the third rollout: of 8 or 16 each, and a canary
        ((*no_warmup("grpo"), "checkpoint.every=1000"), 2 * 9 + 4),
        ((*no_warmup("grpo"), "checkpoint.every=1"), 2 * 9 + 4),
        ((*no_warmup("dapo"), "algo.max_draws=2", "reward.formula=tests.vllm.rollouts:seldom",
          "checkpoint.every=1000"), 2 * 17 + 1 + 8 + 3),
    ],
    ids=["grpo", "grpo with a checkpoint of the step", "dapo in its second draw"],
)  # fmt: skip
def test_told_to_end_a_run_gives_up_a_rollout_of_servers_that_hang_and_goes_on_before_it(
    fakes, tmp_path, settings, asked
):
    settings = (*settings, *SERVED, "sampling.vllm.seconds=100", "steps=4")
    start(tmp_path / "whole", *settings, *at(fakes())).join()
    whole = read(tmp_path / "whole" / "run")
    bad, folder = fakes(times=asked), tmp_path / "cut"
    bad.after = "hang"
    child = start(folder, *settings, *at(bad))
    wait_for(lambda: bad.calls["/v1/completions"] > asked, 60)
    told = time.monotonic()
    child.terminate()
    child.join(60)
    assert time.monotonic() - told < 15, "far from the 100 seconds of a request"
    left = read(folder / "run")
    assert left.state == "interrupted" and len(left.phase("train")) == 2
    assert next(snapshots(folder / "run" / "checkpoints")).step == 2
    assert not bad.adapters, "as they were"
    start(folder, *settings, "resume=true", *at(fakes())).join()
    again = read(folder / "run")
    assert again.state == whole.state == "finished"
    assert [stable(row) for row in again.rows] == [stable(row) for row in whole.rows]


def test_what_went_wrong_is_an_event_of_its_step(fakes, tmp_path):
    fake = fakes(fault="forgets", times=1)
    fake.times = 1
    record = run(tmp_path, *no_warmup("grpo"), *SERVED, "steps=1", *at(fakes(), fake))
    (event,) = [event for event in read_lines(record.path / "events.jsonl") if event["kind"] == "server"]
    assert event["step"] == 1 and fake.url in event["what"] and "404" in event["what"]


def test_a_gap_that_is_too_large_stops_the_run_before_it_trains(fakes, tmp_path, monkeypatch):
    """The canary is fooled: what is left is the comparison of every token of the rollout."""
    real = vllm_rollouts.ServedSampler.__call__

    def other(self, *asked):
        made = real(self, *asked)
        return replace(made, logprobs=(made.logprobs - 0.4).masked_fill(~made.mask, 0.0))

    monkeypatch.setattr(vllm_rollouts.ServedSampler, "__call__", other)
    with pytest.raises(FloatingPointError, match=r"step 1: .* 0.4 nats per token \(sampling.vllm.gap=0.2\)"):
        execute(tmp_path, *no_warmup("grpo"), *SERVED, "steps=2", *at(fakes()))


def test_a_run_starts_its_own_server_and_ends_it(tmp_path, monkeypatch):
    processes, secrets = [], []
    real = OwnServer.start

    def start(self):
        secrets.append((self.key, self.command))
        real(self)
        processes.append(self.process)

    monkeypatch.setattr(OwnServer, "start", start)
    record = run(tmp_path, *no_warmup("grpo"), *OWN, "steps=2")
    assert record.state == "finished" and record.phase("train")[-1]["sampler/gap"] < 1e-4
    (process,) = processes
    assert process.poll() is not None
    ((key, command),) = secrets
    assert len(key) == 64 and key not in str(command)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]


def test_its_own_server_is_started_again_when_it_dies(tmp_path, monkeypatch):
    started = []
    real = OwnServer.start
    monkeypatch.setattr(OwnServer, "start", lambda self: (real(self), started.append(self.process))[0])
    ask = vllm_rollouts.ServedSampler.__call__

    def killed(self, *asked):
        if len(started) == 1 and self.proven and len(self.rollouts) == 1:
            os.kill(started[0].pid, signal.SIGKILL)
        self.rollouts.append(1)
        return ask(self, *asked)

    monkeypatch.setattr(vllm_rollouts.ServedSampler, "rollouts", [], raising=False)
    monkeypatch.setattr(vllm_rollouts.ServedSampler, "__call__", killed)
    record = run(tmp_path, *no_warmup("grpo"), *OWN, "steps=3")
    assert record.state == "finished" and len(started) == 2
    assert "started again" in str(read_lines(record.path / "events.jsonl"))


def test_a_server_that_cannot_start_is_reported_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM_FAULT", "start")
    with pytest.raises(ConfigError, match="(?s)ended .* instead of starting.*no memory for the cache"):
        execute(tmp_path, *no_warmup("grpo"), *OWN, "steps=1")
    (tmp_path / "text").write_text("not a program")
    with pytest.raises(ConfigError, match="cannot be started: Permission denied"):
        execute(tmp_path, *no_warmup("grpo"), *SERVED, "steps=1", f"sampling.vllm.python={tmp_path}/text")


@BY_COMMAND
@pytest.mark.slow
def test_two_processes_share_one_server_and_sample_what_one_does(tmp_path):
    settings = (*TINY, *no_warmup("grpo"), *OWN, "steps=2")
    launch = ["accelerate.commands.launch", "--config_file", "conf/accelerate/ddp.yaml", "-m", "align.run"]
    for name, module in (("one", ["align.run"]), ("two", launch)):
        command = [sys.executable, "-m", *module, *settings, f"run_dir={tmp_path}/{name}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | FAKE)
        assert done.returncode == 0, done.stderr
    one, two = (read(tmp_path / name) for name in ("one", "two"))
    assert two.meta["processes"] == 2
    for row, other in zip(one.phase("train"), two.phase("train"), strict=True):
        for key in ("reward/mean", "length/mean", "completions", "gen_tokens"):
            assert row[key] == other[key], key
        assert row["optim/grad_norm"] == pytest.approx(other["optim/grad_norm"], rel=1e-3)
    assert not read_lines(two.path / "events.jsonl")


@BY_COMMAND
@pytest.mark.slow
def test_two_processes_give_up_a_rollout_together(fakes, tmp_path):
    settings = (*TINY, *no_warmup("grpo"), *SERVED, "sampling.vllm.seconds=100", "steps=4", "checkpoint.every=1000")

    def launched(name: str, *overrides: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "conf/accelerate/ddp.yaml",
                   "-m", "align.run", *settings, f"run_dir={tmp_path}/{name}", *overrides]  # fmt: skip
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert launched("whole", *at(fakes())).wait(200) == 0
    asked = 2 * 9 + 4
    bad = fakes(times=asked)
    bad.after = "hang"
    child = launched("cut", *at(bad))
    wait_for(lambda: bad.calls["/v1/completions"] > asked, 100)
    child.terminate()
    child.wait(60)
    assert read(tmp_path / "cut").state == "interrupted"
    assert next(snapshots(tmp_path / "cut" / "checkpoints")).step == 2
    assert launched("cut", "resume=true", *at(fakes())).wait(200) == 0
    whole, again = (read(tmp_path / name) for name in ("whole", "cut"))
    assert [stable(row) for row in again.rows] == [stable(row) for row in whole.rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=BY_COMMAND), pytest.param(signal.SIGTERM, marks=BY_COMMAND), signal.SIGKILL],
)
def test_however_the_run_ends_so_does_its_server(tmp_path, number):
    command = [sys.executable, "-m", "align.run", *TINY, *no_warmup("grpo"), *OWN, "steps=100000",
               f"run_dir={tmp_path}/run"]  # fmt: skip
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env=os.environ | FAKE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and '"train"' in metrics.read_text(), 120)
    (server,) = servers_of(child.pid)
    child.send_signal(number)
    child.communicate(timeout=60)
    assert child.returncode == (-9 if number == signal.SIGKILL else 130)
    wait_for(lambda: not Path(f"/proc/{server}").exists(), 10)


def servers_of(parent: int) -> list[int]:
    """Processes that it started and that serve."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "api_server" in line]


def wait_for(what, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
