"""What `python -m align.bench` accepts, and the file of settings behind it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from align.bench.__main__ import HELP, main
from align.bench.settings import FILE, experiment, settings
from align.data.annotator import pool_prompts, read_pool
from align.stages import SHIPPED


def test_every_row_composes_into_a_run_that_passes_the_laws():
    bench = settings(["model=tiny"])
    assert len(bench.works) == 7
    for work in bench.works:
        run = experiment(bench, work)
        assert run.steps == bench.warmup + bench.steps
        assert work.trl is not None or work.name == "ppo_4x4"


def test_rollouts_are_as_many_as_the_row_says_and_within_its_limit():
    bench = settings([])
    sizes = {}
    for work in bench.works:
        if work.kind == "rollout":
            run = experiment(bench, work)
            sizes[work.name] = (run.algo.prompts_per_step, run.algo.group_size)
            assert len(work.prompts) == run.algo.prompts_per_step
            assert {len(group) for group in work.lengths} == {run.algo.group_size}
            assert all(1 <= n <= run.sampling.max_new_tokens for group in work.lengths for n in group)
    assert sizes == {"grpo_4x4": (4, 4), "grpo_8x8": (8, 8), "rloo_4x4": (4, 4), "ppo_4x4": (4, 4)}


def test_lengths_are_those_of_the_start_models_answers():
    pool = read_pool(next(SHIPPED.glob("pool-*.jsonl.gz")))
    answers: dict[str, list[int]] = {}
    for row in pool.rows:
        answers.setdefault(row.prompt_id, []).append(min(row.tokens, 64))
    for work in settings([]).works:
        for prompt, lengths in zip(work.prompts, work.lengths or (), strict=False):
            assert list(lengths) == answers[prompt][: len(lengths)], (work.name, prompt)


def test_prompts_are_at_even_distances_through_the_pool():
    ids = [prompt.id for prompt in pool_prompts()]
    for work in settings([]).works:
        places = [ids.index(prompt) for prompt in work.prompts]
        step = {4: 89, 8: 44, 16: 22}[len(places)]
        assert places == list(range(0, step * len(places), step))


def test_trl_trains_on_as_many_sequences_as_we_do():
    for work in settings([]).works:
        if work.trl is None:
            continue
        size = sum(map(len, work.lengths)) if work.lengths else len(work.prompts)
        for stock in (work.trl, *work.candidates):
            args = stock.args
            assert args["per_device_train_batch_size"] * args["gradient_accumulation_steps"] == size


def test_what_trl_is_set_to_is_one_of_the_candidates():
    for work in settings([]).works:
        assert work.trl is None or work.trl in work.candidates, work.name


def test_rloo_and_grpo_have_the_same_kl_on_both_sides():
    bench = settings(["works=grpo_4x4,grpo_8x8,rloo_4x4"])
    assert {experiment(bench, work).algo.kl.coef for work in bench.works} == {0.04}


def test_help_names_every_argument_and_every_row():
    raw = yaml.safe_load(FILE.read_text())
    rows = raw.pop("rows")
    assert all(f"  {key}=" in HELP for key in raw)
    assert all(name in HELP for name in rows)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("works=grpo_4x5", "works=grpo_4x5: must be one of"),
        ("repeat=3", "repeat='3': there is no such key; did you mean \"repeats\"?"),
        ("repeats=0", "repeats=0: must be >= 1"),
        ("steps=many", "steps=many: must be a whole number >= 1"),
        ("search=1", "search=1: must be true or false"),
        ("model=nano", "Could not find 'model/nano'"),
        ("dtype=int8", "dtype=int8"),
        ("grpo_4x4", "grpo_4x4: not understood; arguments are key=value"),
        ("--verbose=1", "--verbose=1: not understood"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(argument, says, capsys):
    assert main([argument]) == 1
    assert says in capsys.readouterr().err


def test_help_needs_neither_torch_nor_trl():
    code = ("import sys, align.bench.__main__ as m; m.main(['--help']); m.settings([]);"
            "print([name for name in ('torch', 'transformers', 'trl', 'peft') if name in sys.modules])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
