"""From a study file to runs: which there are, what is skipped, what is done when a run fails or is cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from align.config import config_hash, plain
from align.refusals import ConfigError
from align.study import __main__ as cli
from align.study import engine, spec
from tests.end_to_end.helpers import BY_COMMAND, ROOT, TINY
from tests.study.fakes import TRAINED

BASE = [*TINY, "algo=dpo", "probe.samples=2", "probe.greedy=false", "probe.pairs=2", "algo.optimizer.warmup_steps=0",
        "data.train=8"]  # fmt: skip
SMALL = TRAINED | {
    "name": "small",
    "base": BASE,
    "tiers": {"cpu": ["steps=2"], "gpu": ["steps=3"]},
    "arms": {"plain": ["algo.optimizer.lr=1e-3"], "treated": ["algo.optimizer.lr=0.1"]},
    "seeds": {"cpu": [0, 1], "gpu": [0, 1, 2]},
    "gates": {"length/truncated": [0, 1]},
}
SMALL = {key: value for key, value in SMALL.items() if key not in ("controls", "mitigations", "cure")}


def write(path: Path, **changes) -> Path:
    path.write_text(yaml.safe_dump(SMALL | changes, allow_unicode=True), encoding="utf-8")
    return path


def planned(tmp_path, *extra, tier="cpu", seeds=None, **changes) -> engine.Plan:
    return engine.plan(spec.parse(SMALL | changes), tier, seeds, extra, tmp_path / "runs")


# --- which runs there are ---


@pytest.mark.parametrize("file", spec.files(), ids=lambda file: file.stem)
def test_every_study_in_conf_is_named_as_its_file_and_makes_valid_runs(file, tmp_path):
    study = spec.load(file)
    assert study.name == file.stem
    for tier in study.tiers or {}:
        asked = [f"{key}=pairs.jsonl" for key in study.asks]
        assert engine.plan(study, tier, None, asked, tmp_path).as_declared
        tasks = engine.expand(
            engine.plan(study, tier, study.seeds[tier][:1], asked, tmp_path)
        )  # the others differ in it alone
        assert Counter(task.arm for task in tasks) == Counter([*study.roles])
        if study.kind == "trained":
            assert len({(e.probe.prompts, e.probe.samples) for e in (task.experiment for task in tasks)}) == 1
            assert {task.experiment.probe.prompts for task in tasks} == {128}  # probe=full, in every arm


def test_the_studies_of_the_project_are_there():
    asked = {"dpo_length", "dpo_displacement", "sft_on_chosen", "rm_noise", "rm_overopt", "grpo_vs_ppo",
             "decode_tradeoff", "lora_vs_full", "lora_init_trained"}  # fmt: skip
    assert asked <= {file.stem for file in spec.files()}


def test_two_studies_share_their_runs(tmp_path):
    def runs(name):
        tasks = engine.expand(engine.plan(spec.load(spec.find(name)), "cpu", None, (), tmp_path))
        return {config_hash(plain(task.experiment)): task.arm for task in tasks}

    ours, others = runs("dpo_length"), runs("sft_on_chosen")
    shared = Counter((arm, others[key]) for key, arm in ours.items() if key in others)
    assert shared == {("unbiased", "dpo"): 5, ("shuffled", "shuffled"): 3}


@pytest.mark.parametrize("tier", ["cpu", "gpu"])
def test_ppo_and_what_it_is_compared_with_see_as_many_completions(tier, tmp_path):
    tasks = engine.expand(engine.plan(spec.load(spec.find("grpo_vs_ppo")), tier, None, (), tmp_path))
    arms = [task.experiment for task in tasks if task.arm != "untrained"]
    assert len({e.algo.prompts_per_step * e.algo.group_size * e.steps for e in arms}) == 1
    assert {(e.algo.name, e.algo.group_size) for e in arms} == {("ppo", 1), ("grpo", 4), ("grpo", 8), ("rloo", 8)}


@pytest.mark.parametrize("tier", ["cpu", "gpu"])
def test_all_weights_and_every_rank_are_trained_alike_in_float32(tier, tmp_path):
    tasks = engine.expand(engine.plan(spec.load(spec.find("lora_vs_full")), tier, None, (), tmp_path))
    lora = {task.arm: task.experiment.model.lora for task in tasks}
    assert lora.pop("full") is None and {arm: own.rank for arm, own in lora.items()} == dict(r1=1, r4=4, r16=16, r64=64)
    assert {own.alpha for own in lora.values()} == {32.0}  # with s = alpha / r the best rate hardly depends on the rank
    rest = [(e.dtype, e.steps, e.data.train, e.algo.examples_per_step) for e in (task.experiment for task in tasks)]
    assert len({*rest}) == 1 and rest[0][0] == "float32"


def test_an_arm_and_a_seed_are_a_run_and_later_overrides_win(tmp_path):
    tasks = engine.expand(planned(tmp_path, "algo.beta=7"))
    assert [(t.arm, t.seed, t.experiment.seed) for t in tasks] == [("plain", 0, 0), ("plain", 1, 1), ("treated", 0, 0),
                                                                   ("treated", 1, 1)]  # fmt: skip
    assert [t.experiment.algo.optimizer.lr for t in tasks] == [1e-3, 1e-3, 0.1, 0.1]
    assert {t.experiment.algo.beta for t in tasks} == {7.0} and {t.experiment.steps for t in tasks} == {2}
    assert engine.merged(["a=1", "b=2"], ["a=3"]) == ("a=3", "b=2")


def test_a_tier_has_its_seeds_and_settings(tmp_path):
    tasks = engine.expand(planned(tmp_path, tier="gpu"))
    assert len(tasks) == 6 and {t.experiment.steps for t in tasks} == {3}
    with pytest.raises(ConfigError, match="tier=tpu: must be one of cpu, gpu"):
        planned(tmp_path, tier="tpu")


def test_controls_and_mitigations_may_have_fewer_of_the_seeds(tmp_path):
    few = {"beside": {"cpu": 1, "gpu": 3}, "controls": {"placebo": ["algo.optimizer.lr=0.2"]}}
    for tier, seeds, control in (("cpu", [0, 1], [0]), ("gpu", [0, 1, 2], [0, 1, 2])):
        tasks = engine.expand(planned(tmp_path, tier=tier, **few))
        assert {arm: [task.seed for task in tasks if task.arm == arm] for arm in ("plain", "treated", "placebo")} == {
            "plain": seeds, "treated": seeds, "placebo": control}  # fmt: skip


def test_what_is_changed_by_hand_is_not_as_declared(tmp_path):
    assert planned(tmp_path).as_declared and planned(tmp_path, seeds=(0, 1)).as_declared
    assert not planned(tmp_path, "steps=3").as_declared and not planned(tmp_path, seeds=(0,)).as_declared


def test_what_a_study_asks_for_must_be_given_and_is_no_change_of_it(tmp_path):
    asking = {"asks": ["algo.beta"]}
    with pytest.raises(ConfigError, match="algo.beta=: study=small asks for it: give algo.beta=VALUE"):
        planned(tmp_path, **asking)
    given = planned(tmp_path, "algo.beta=7", **asking)
    assert given.as_declared and not given.changes
    assert {task.experiment.algo.beta for task in engine.expand(given)} == {7.0}
    more = planned(tmp_path, "algo.beta=7", "steps=3", **asking)
    assert not more.as_declared and more.changes == ["steps=3"]


def test_a_seed_can_be_handed_on_to_the_labels(tmp_path):
    base = [*BASE, "data=annotator", "reward=none", "data.labels.seed=${seed}"]
    kept = [item for item in base if not item.startswith(("reward.formula", "data.train", "data=arithmetic"))]
    tasks = engine.expand(planned(tmp_path, base=kept))
    assert [t.experiment.data.labels.seed for t in tasks] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {"plain": [], "treated": ["algo.beta=-1"]}}, "arm treated: algo.beta=-1.0"),
        ({"arms": {"plain": [], "treated": ["algo.betta=1"]}}, "arm treated: .*betta"),
        ({"arms": {"plain": [], "treated": ["algo=dpoo"]}}, "arm treated: .*dpoo"),
        ({"arms": {"plain": [], "treated": ["algo.beta=0.1"]}}, "arms plain and treated: both are the same experiment"),
        ({"base": [*BASE, "probe.samples=1"], "primary": SMALL["primary"] | {"of": "base_within_prompt_sd"}},
         "probe.samples=1: a margin in base_within_prompt_sd needs 2"),
    ],
)  # fmt: skip
def test_a_study_that_cannot_run_is_refused_before_any_run(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        engine.expand(planned(tmp_path, **changes))


# --- the command line ---


def test_the_command_line_says_what_is_wrong_without_a_traceback(tmp_path, capsys):
    for arguments, said in (
        (["study=dpo_lenth"], 'did you mean "dpo_length"'),
        (["dpo_length"], "arguments are KEY=VALUE"),
        (["tier=cpu"], "name the study"),
        (["study=dpo_length", "seeds=a"], "seeds=a: must be whole numbers"),
        (["study=dpo_length", "jobs=0", f"runs_root={tmp_path}"], "jobs=0: must be a whole number above 0"),
        (["study=dpo_length", "seed=3"], "is the study's to choose"),
        (["study=dpo_length", "teir=gpu"], "teir"),
    ):
        assert cli.main(arguments) == 1
        err = capsys.readouterr().err
        assert said in err and err.startswith("error: ") and "Traceback" not in err


def test_without_arguments_the_studies_are_listed(capsys):
    assert cli.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(spec.files()) and any(line.startswith("dpo_length ") for line in lines)


# --- jobs that train nothing ---


@pytest.fixture
def children(monkeypatch):
    """Runs are this Python code instead of a training, with the arm and seed as arguments."""

    def fake(code: str) -> None:
        made = lambda task: [sys.executable, "-c", code, task.arm, str(task.seed)]  # noqa: E731
        monkeypatch.setattr(engine, "command", made)
        monkeypatch.setattr(engine, "POLL_SECONDS", 0.02)

    return fake


def test_a_run_that_fails_does_not_stop_the_others_and_its_words_are_kept(children, tmp_path, capfd):
    children(
        "import os, sys; open(os.environ['ALIGN_LAST_WORDS'], 'w').write('no room'); sys.exit(sys.argv[1] == 'plain')"
    )
    failed = engine.carry_out(engine.expand(planned(tmp_path)), 2, tmp_path / "logs")
    assert [(one.task.name, one.code, one.what) for one in failed if one.task.arm == "plain"] == [
        ("plain seed 0", 1, "no room"), ("plain seed 1", 1, "no room")
    ]  # fmt: skip
    # exit code 0 without a finished run is a failure too
    assert [one.code for one in failed if one.task.arm == "treated"] == [2, 2]
    assert engine.worst(failed) == 2 and engine.worst(failed[:0]) == 0


@pytest.mark.parametrize("at_once", [1, 3])
def test_at_most_as_many_run_at_a_time_as_asked(children, tmp_path, capfd, at_once):
    own = f"{tmp_path}/{{os.getpid()}}"
    children(f"import os, time\nopen(f'{own}.on', 'w')\ntime.sleep(.4)\n"
             f"n = len([f for f in os.listdir('{tmp_path}') if f.endswith('.on')])\n"
             f"os.remove(f'{own}.on')\nopen(f'{own}.n', 'w').write(str(n))")  # fmt: skip
    engine.carry_out(engine.expand(planned(tmp_path)), at_once, tmp_path / "logs")
    seen = [int(file.read_text()) for file in tmp_path.glob("*.n")]
    assert len(seen) == 4 and max(seen) <= at_once


def test_an_interrupt_reaches_every_run_and_is_raised_again(children, tmp_path, capfd, monkeypatch):
    children("import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: open(__import__('sys').argv[1], 'w')")
    started = []
    start = engine.start_child

    def counted(*arguments):
        started.append(start(*arguments))
        if len(started) == 2:
            time.sleep(1.0)  # long enough for the children to be in their sleep
            raise KeyboardInterrupt
        return started[-1]

    monkeypatch.setattr(engine, "start_child", counted)
    with pytest.raises(KeyboardInterrupt):
        engine.carry_out(engine.expand(planned(tmp_path)), 2, tmp_path / "logs")
    assert started[0].returncode is not None  # waited for
    started[1].kill()
    started[1].wait()


# --- the whole, on the tiny model ---


def study(root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "align.study", f"study={root}/small.yaml", f"out={root}/out",
            f"runs_root={root}/runs", *more]  # fmt: skip


@BY_COMMAND
def test_a_study_that_is_killed_and_started_again_gives_the_same_verdict_and_then_changes_nothing(tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "small.yaml", tiers={"cpu": ["steps=2", "checkpoint.every=1"]}, seeds=[0])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = lambda root, *more: subprocess.run(  # noqa: E731
        study(tmp_path / root, *more), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200
    )
    whole = run("whole", "jobs=2")
    assert whole.returncode == 0, whole.stderr
    cut = subprocess.Popen(study(tmp_path / "cut"), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 600
    while len([*tmp_path.glob("cut/runs/*/metrics.jsonl")]) < 2 and time.monotonic() < until:  # in the second run
        time.sleep(0.1)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert not (tmp_path / "cut/out/small/verdict.json").exists()
    again = run("cut")  # the killed study's run still goes on, and is waited for
    assert again.returncode == 0, again.stderr
    texts = [(tmp_path / name / "out/small/verdict.json").read_bytes() for name in ("whole", "cut")]
    assert texts[0] == texts[1] and b'"outcome"' in texts[0]
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()}
    started = time.process_time(), time.monotonic()
    third = run("cut")
    assert third.returncode == 0 and "2 runs, 2 finished already" in third.stdout
    assert time.monotonic() - started[1] < 20  # 5 s on a machine that is not busy
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before} == before
