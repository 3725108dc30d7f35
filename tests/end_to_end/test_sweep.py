"""Sweeps: whatever a job does, the others run, every ending is recorded, and the comparison comes at the end."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from unittest.mock import patch

import pytest
import torch
from hydra.core.plugins import Plugins

from align import jobs, run, sweep
from align.jobs import Job, records
from align.locks import lock, unlock
from align.places import Place
from align.refusals import ConfigError
from align.runs import read, stable
from tests.end_to_end import launchers
from tests.end_to_end.helpers import TINY, execute, no_warmup
from tests.runs.fake_runs import config, write_run

FAST = (*TINY, *no_warmup("sft"), "probe.every=9", "probe.greedy=false", "steps=3")


@pytest.fixture
def swept(monkeypatch, tmp_path, capfd):
    """`python -m align.run -m ...` in this process, jobs in theirs: exit code, stdout, stderr, the sweep's folder."""

    def call(*overrides: str) -> tuple[int, str, str, Path]:
        folder = tmp_path / f"sweep-{len(list(tmp_path.glob('sweep-*')))}"
        own = [f"runs_root={tmp_path}/runs", f"hydra.sweep.dir={folder}"]
        monkeypatch.setattr(sys, "argv", ["align.run", "-m", *own, *overrides])
        monkeypatch.setattr(sweep, "FOLDERS", [])
        with pytest.raises(SystemExit) as end:
            run.main()
        out, err = capfd.readouterr()
        return end.value.code, out, err, folder

    return call


@pytest.fixture
def children(monkeypatch):
    """Jobs are this Python code instead of a training, with their overrides as arguments; calls are kept."""
    started: list[list[str]] = []

    def fake(code: str) -> list[list[str]]:
        def command(hydra):
            started.append(list(hydra.overrides.task))
            return [sys.executable, "-c", code, *started[-1]]

        monkeypatch.setattr(jobs, "command", command)
        return started

    return fake


def last_line(text: str) -> str:
    return text.rstrip().splitlines()[-1]


# --- with runs ---


CRASHING = """import sys
from unittest.mock import patch
from align import experiment, run
with patch.dict(experiment.TRAINERS, sft=lambda *_: 1 / 0): run.main()
"""


@pytest.mark.slow
def test_bad_input_and_a_crash_do_not_stop_the_others_and_what_is_finished_is_skipped(swept, monkeypatch):
    whole = jobs.command

    def command(hydra):
        """The second seed has a bug in its trainer."""
        made = whole(hydra)
        return made if "seed=1" not in made else [made[0], "-c", CRASHING, *made[3:]]

    monkeypatch.setattr(jobs, "command", command)
    code, out, err, folder = swept(*FAST, "seed=-1,1,2")
    bad, crashed, done = records(folder)
    assert [(j.exit_code, j.state) for j in (bad, crashed, done)] == [(1, "failed"), (2, "failed"), (0, "finished")]
    assert bad.error.startswith("seed=-1") and bad.run_dir is None
    assert "ZeroDivisionError" in crashed.error and read(Path(crashed.run_dir)).state == "failed"
    assert code == 2
    assert "== job 3 of 3: seed=2" in out and "== job 1 failed (1): seed=-1" in err
    assert last_line(out) == str(folder / "index.html")
    page = (folder / "index.html").read_text()
    assert Path(done.run_dir).name in page and Path(crashed.run_dir).name in page

    before = {file: file.stat().st_mtime_ns for file in Path(done.run_dir).rglob("*")}
    code, out, _, folder = swept(*FAST, "seed=-1,2")
    assert [(j.exit_code, j.state) for j in records(folder)] == [(1, "failed"), (0, "skipped")]
    assert code == 1 and f"finished already: {done.run_dir}" in out
    assert {file: file.stat().st_mtime_ns for file in Path(done.run_dir).rglob("*")} == before
    assert last_line(out) == str(folder / "index.html")


@contextmanager
def as_many_threads_as_a_job() -> Iterator[None]:
    """These tests have one (tests/conftest.py), a job has torch's default; sums of another order round otherwise."""
    code, before = "import torch; print(torch.get_num_threads())", torch.get_num_threads()
    torch.set_num_threads(int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_killed_job_is_recorded_and_goes_on_when_the_sweep_is_repeated(swept, tmp_path, monkeypatch):
    monkeypatch.setenv("KILLED_ONCE", str(tmp_path / "killed"))
    settings = (*TINY, "steps=3", "checkpoint.every=1", "probe.every=9",
                "reward.formula=tests.end_to_end.bad_rewards:killed_once")  # fmt: skip
    code, _, _, folder = swept(*settings)
    (job,) = records(folder)
    assert (code, job.exit_code, job.state, job.error) == (2, 137, "failed", "ended by signal 9")
    code, _, err, folder = swept(*settings)
    (job,) = records(folder)
    assert (code, job.exit_code, job.state) == (0, 0, "finished")
    assert "goes on from step 1" in err
    with as_many_threads_as_a_job():
        whole = read(execute(tmp_path / "whole", *settings))
    assert [stable(row) for row in read(Path(job.run_dir)).rows] == [stable(row) for row in whole.rows]


def test_ctrl_c_ends_the_whole_sweep_and_its_job(tmp_path):
    """The job is one that would take minutes; only the process that was started by hand is interrupted."""
    command = [sys.executable, "-m", "align.run", "-m", *TINY, "steps=9999", "seed=0,1", "probe.every=9999",
               f"runs_root={tmp_path}/runs", f"hydra.sweep.dir={tmp_path}/sweep"]  # fmt: skip
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    rows = lambda: [file for file in tmp_path.glob("runs/*/metrics.jsonl") if file.stat().st_size]  # noqa: E731
    wait_for(rows)
    parent.send_signal(signal.SIGINT)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "the same command goes on" in err and err.endswith("interrupted\n") and "Traceback" not in err
    (job,) = records(tmp_path / "sweep")
    assert (job.number, job.exit_code, job.state) == (0, 130, "interrupted")
    assert read(Path(job.run_dir)).state == "interrupted"


def wait_for(condition, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


# --- with jobs that train nothing ---


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((0, 0), 0), ((1, 0), 1), ((0, 2), 2), ((1, 2), 2), ((1, 7), 2), ((-9, 0), 2), ((130, 1), 130), ((-2, 0), 130)],
)
def test_the_exit_code_is_that_of_the_worst_job(swept, children, codes, expected):
    first, second = (f"os.kill(os.getpid(), {-c})" if c < 0 else f"sys.exit({c})" for c in codes)
    started = children(f"import os, sys\nif 'seed=0' in sys.argv: {first}\nelse: {second}")
    code, _, err, folder = swept(*FAST, "seed=0,1")
    assert len(started) == 2
    assert [job.exit_code for job in records(folder)] == [128 - c if c < 0 else c for c in codes]
    assert code == expected
    assert "no job left a run to compare" in err


def test_a_comparison_that_fails_is_said_and_takes_no_job_s_code(swept, children, tmp_path, monkeypatch):
    children("")
    made = write_run(tmp_path / "made", config())
    monkeypatch.setattr(jobs, "place", lambda experiment: Place(made))
    monkeypatch.setattr("align.compare.compare", lambda runs, folder: 1 / 0)
    code, _, err, folder = swept(*FAST)
    assert code == 2 and "the comparison failed: division by zero" in err
    assert records(folder)[0].exit_code == 0


def test_the_sentence_that_a_job_ends_with_is_its_error(swept, children):
    children("import os, sys; open(os.environ['ALIGN_LAST_WORDS'], 'w').write('data.path=x: no such file\\nmore')\n"
             "sys.exit(1)")  # fmt: skip
    code, out, _, folder = swept(*FAST)
    assert code == 1 and records(folder)[0].error == "data.path=x: no such file"
    assert "data.path=x: no such file" in out
    assert [file.name for file in (folder / "jobs").iterdir()] == ["0.json"]


def test_a_job_is_the_run_of_its_overrides_whatever_is_in_them(swept, children, tmp_path):
    """The sweeper quotes for Hydra, and no shell is in between: what the job composes is what was swept."""
    code = (
        "import json, sys; from align.run import CONF; from hydra import compose, initialize_config_dir\n"
        "with initialize_config_dir(str(CONF), version_base='1.3'): cfg = compose('run', overrides=sys.argv[1:])\n"
        f"open({str(tmp_path / 'formulas')!r}, 'a').write(json.dumps([cfg.reward.formula, cfg.seed]) + chr(10))"
    )
    children(code)
    swept(*FAST, "reward.formula='verifier - 0.01*length','tests.end_to_end.bandit:even'", "seed=3")
    lines = [json.loads(line) for line in (tmp_path / "formulas").read_text().splitlines()]
    assert lines == [["verifier - 0.01*length", 3], ["tests.end_to_end.bandit:even", 3]]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["run_dir=mine", "seed=0,1"], "run_dir=mine: the jobs of a sweep would share it"),
        (["run_dir=a,b"], "run_dir=a,b"),
        (["runs_root=a,b"], "runs_root=a,b: a sweep has one root"),
        (["resume=false"], "resume=false: a sweep always goes on"),
        (["resume=true,false"], "resume=true,false"),
        (["hydra.callbacks.sweep.objective=reward/proxy"], "only a sweeper that optimises reads it"),
        (["algo=dpo,gropo"], "gropo"),
        (["hydra.sweep.dir='~/x'"], "without ~"),
    ],
)
def test_what_several_jobs_cannot_have_is_refused_before_the_first(swept, children, overrides, named, tmp_path):
    started = children("")
    code, _, err, _ = swept(*FAST, *overrides)
    assert code == 1 and named in err and "Traceback" not in err
    assert started == [] and not (tmp_path / "runs").exists()


def test_below_accelerate_launch_a_sweep_is_refused(swept, children, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    started = children("")
    code, _, err, _ = swept(*FAST)
    assert code == 1 and "WORLD_SIZE=2" in err and started == []


def test_a_folder_with_a_sweep_is_not_written_over(swept, children, tmp_path):
    children("")
    swept(*FAST)
    code, _, err, _ = swept(*FAST, f"hydra.sweep.dir={tmp_path}/sweep-0")
    assert code == 1 and "there is a sweep already" in err


@pytest.mark.parametrize("place", [0, 2, 99])
def test_m_may_stand_anywhere(monkeypatch, children, tmp_path, place):
    started = children("")
    arguments = ["seed=0,1", *FAST, f"runs_root={tmp_path}/runs"]
    arguments.insert(place, "-m")
    monkeypatch.setattr(sys, "argv", ["align.run", *arguments])
    monkeypatch.setattr(sweep, "FOLDERS", [])
    with pytest.raises(SystemExit) as end:
        run.main()
    assert end.value.code == 0
    assert [job[0] for job in started] == ["seed=0", "seed=1"]
    (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert len(records(folder)) == 2


def test_several_values_without_m_are_refused_with_the_way_to_sweep(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["align.run", "algo=dpo,grpo"])
    with pytest.raises(SystemExit) as end:
        run.main()
    err = capfd.readouterr().err
    assert end.value.code == 1 and "algo=dpo,grpo" in err and "sweep" in err and "-m" in err


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["algo=dpo,grpo", "sedd=0,1"], ["sedd", 'did you mean "seed"']),
        (["seed=0,1", "algo=dpo", "algo.betaa=1", "model=tiny"], ["algo.betaa", "beta"]),
        (["algo=dpo,temperature", "algo.optimizer.lr=1e-3,1e-2"], ["algo.optimizer.lr", "another has not"]),
    ],
)
def test_a_key_that_some_job_does_not_have_is_said_in_one_line(swept, overrides, named):
    code, _, err, _ = swept(*overrides)
    assert code == 1 and err.count("\n") == 1
    assert [word for word in named if word not in err] == []


# --- launchers ---


def test_a_run_is_the_same_whoever_launches_it_and_wherever(swept, children, tmp_path, monkeypatch):
    """Name, hash, folder and command line: paths are meant from where the sweep was started."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    started = children("")
    relative = ("runs_root=here", "hydra.sweep.dir=first")
    swept(*FAST, "algo.optimizer.lr=1e-4,2e-4", *relative)
    ours = [job.run_dir for job in records(Path("first"))]
    relative = ("runs_root=here", "hydra.sweep.dir=second")
    name = "hydra_plugins.launchers.Elsewhere"  # Hydra takes launchers from nowhere else
    monkeypatch.setitem(Plugins.instance().class_name_to_class, name, launchers.Elsewhere)
    elsewhere = f"hydra.launcher._target_={name}"
    swept(*FAST, "algo.optimizer.lr=1e-4,2e-4", *relative, elsewhere)
    assert [job.run_dir for job in records(Path("second"))] == ours and len(set(ours)) == 2
    assert all(name.startswith("here/sft-tiny-arithmetic-s0-") for name in ours)
    assert started[:2] == started[2:]


@pytest.mark.parametrize(
    ("launcher", "named"),
    [
        ("launcher=submitit_local", "pip install 'align[launchers]'"),
        ("launcher=submitit_slurm", "pip install 'align[launchers]'"),
        ("launcher=ray", "hydra-ray-launcher"),
        ("launcher=joblib", "pip install 'align[sweeps]'"),
        ("sweeper=optuna", "pip install 'align[sweeps]'"),
    ],
)
def test_a_plugin_that_is_missing_is_named_with_what_brings_it(launcher, named, tmp_path):
    """In a process whose Hydra finds no plugin, whatever is installed here."""
    code = (
        "import sys; sys.modules['hydra_plugins'] = __import__('types').ModuleType('hydra_plugins')\n"
        "sys.modules['hydra_plugins'].__path__ = []\nfrom align.run import main; main()"
    )
    command = [sys.executable, "-c", code, "-m", f"hydra/{launcher}", "seed=0,1", f"runs_root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: hydra/{launcher}: its plugin is not installed") and named in done.stderr


def test_slurm_without_sbatch_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("align.sweep.shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="no sbatch here"):
        sweep._refuse_launcher(sweep.SLURM)
    sweep._refuse_launcher("another")


def test_a_launcher_for_a_single_run_is_refused(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["align.run", "hydra.launcher._target_=tests.end_to_end.launchers.Elsewhere"])
    with pytest.raises(SystemExit) as end:
        run.main()
    assert end.value.code == 1 and "only a sweep has one; add -m" in capfd.readouterr().err


def test_a_job_whose_time_is_over_is_told_to_end_and_its_record_says_so(swept, monkeypatch, tmp_path):
    """submitit raises from the handler of a signal: the run must save and end, and not go on alone."""
    said = tmp_path / "said"
    code = f"import signal, time\ndef told(*_):\n    open({str(said)!r}, 'w').write('told'); raise SystemExit(130)\n" \
           f"signal.signal(signal.SIGTERM, told); open({str(said)!r}, 'w').write('up'); time.sleep(60)"  # fmt: skip
    monkeypatch.setattr(jobs, "command", lambda hydra: [sys.executable, "-c", code])

    def over(*_) -> None:
        raise RuntimeError("timed-out too many times")

    before = signal.signal(signal.SIGUSR2, over)

    def signal_it() -> None:
        wait_for(lambda: said.is_file() and said.read_text() == "up")
        os.kill(os.getpid(), signal.SIGUSR2)

    thread = Thread(target=signal_it)
    thread.start()
    code, _, err, folder = swept(*FAST)
    thread.join()
    signal.signal(signal.SIGUSR2, before)
    (job,) = records(folder)
    assert (code, job.state, job.exit_code) == (2, "failed", 2) and "timed-out too many times" in job.error
    assert said.read_text() == "told"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_ends_a_sweep_reaches_its_job_so_that_it_keeps_its_step(number, tmp_path, request):
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # nohup, under which these tests may run, has SIGHUP ignored
    request.addfinalizer(lambda: signal.signal(number, before))
    log = tmp_path / "log"
    code = "import signal, sys, time\ntell = lambda n, _: sys.exit(n)\n" \
           "for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, tell)\n" \
           "print('up', flush=True); time.sleep(60)"  # fmt: skip

    def signal_it() -> None:
        wait_for(lambda: log.is_file() and log.read_text() == "up\n")
        os.kill(os.getpid(), number)

    thread = Thread(target=signal_it)
    thread.start()
    ended = []
    wait = subprocess.Popen.wait
    waited = patch.object(subprocess.Popen, "wait", lambda self, *a: ended.append(wait(self, *a)) or ended[-1])
    with waited, pytest.raises(KeyboardInterrupt):
        jobs.run_child([sys.executable, "-c", code], tmp_path / "words", log)
    thread.join()
    assert ended == [signal.SIGINT if number == signal.SIGINT else signal.SIGTERM]


# --- the objective ---


def test_an_objective_is_the_last_probe_s_value(tmp_path):
    made = write_run(tmp_path / "run", config())
    assert jobs.measured(made, "reward/proxy") == read(made).phase("probe")[-1]["reward/proxy"]


def test_an_objective_that_is_not_measured_names_those_that_are(tmp_path):
    with pytest.raises(jobs.JobError, match="objective=reward/prox: .* does not measure it; it has .*reward/proxy"):
        jobs.measured(write_run(tmp_path / "run", config()), "reward/prox")


def test_an_objective_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(jobs.JobError, match="objective=phase: it is no number"):
        jobs.measured(write_run(tmp_path / "run", config()), "phase")


def test_an_objective_that_is_not_finite_is_none(tmp_path):
    made = write_run(tmp_path / "run", config())
    with (made / "metrics.jsonl").open("a") as rows:
        rows.write('{"phase": "probe", "step": 99, "reward/proxy": null}\n')
    with pytest.raises(jobs.JobError, match="not finite"):
        jobs.measured(made, "reward/proxy")


# --- records ---


def test_jobs_that_others_were_running_are_over_when_the_sweep_is(tmp_path):
    (tmp_path / "jobs").mkdir()
    for job in (Job(10, ("seed=1",)), Job(2, ("seed=0",)).ended(0)):
        jobs.record(tmp_path, job)
    assert [(j.number, j.state, j.exit_code) for j in sweep.settle(tmp_path, 130)] == [
        (2, "finished", 0),
        (10, "interrupted", 130),
    ]
    assert [job.state for job in records(tmp_path)] == ["finished", "interrupted"]


def test_on_a_full_disk_a_sweep_still_says_how_its_jobs_ended(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    jobs.record(tmp_path, Job(0, ("seed=0",)))
    monkeypatch.setattr("align.sweep.record", full)
    assert [job.state for job in sweep.settle(tmp_path, 130)] == ["interrupted"]


def test_on_a_full_disk_a_run_s_exit_code_stays_what_it_is(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ALIGN_LAST_WORDS", str(tmp_path / "words"))
    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(SystemExit) as end:
        run.stop("the run failed", 2)
    assert end.value.code == 2 and "the run failed" in capfd.readouterr().err


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_job_that_still_goes_on_when_the_sweep_is_broken_off_is_not_said_to_be_over(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "run").mkdir()
    jobs.record(tmp_path, Job(0, ("seed=0",), run_dir=str(tmp_path / "run")))
    handle = lock(tmp_path / "run")
    assert [job.state for job in sweep.settle(tmp_path, 130)] == ["running"]
    unlock(handle)
    assert [job.state for job in sweep.settle(tmp_path, 130)] == ["interrupted"]


def test_a_child_that_ignores_the_first_interrupt_is_killed_by_the_second(tmp_path):
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    log = tmp_path / "log"

    def interrupt() -> None:
        wait_for(lambda: log.is_file() and log.read_text() == "up\n", 30)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    thread = Thread(target=interrupt)
    thread.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        jobs.run_child([sys.executable, "-c", code], tmp_path / "words", log)
    thread.join()
    assert time.monotonic() - started < 60
