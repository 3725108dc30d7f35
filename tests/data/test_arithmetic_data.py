from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from align.data import DataError, load
from reward_models.base import Sample
from reward_models.verifiers import find_last_integer


def sums(seed: int = 0, **changes):
    options = {
        "kind": "arithmetic",
        "name": "arithmetic",
        "task": "sum",
        "terms": 2,
        "low": 0,
        "high": 9,
        "train": 1000,
        "heldout": 40,
    }
    return load(SimpleNamespace(**options | changes), None, seed, None)


def terms(prompt) -> tuple[int, ...]:
    return tuple(int(part) for part in prompt.id.removeprefix("sum/").split(" + "))


def test_one_digit_sums_hold_out_forty_of_their_hundred_problems():
    data = sums()
    assert len(data.heldout_prompts) == 40
    assert 55 <= len(data.train_prompts) <= 60
    problems = {terms(prompt) for prompt in data.train_prompts + data.heldout_prompts}
    assert len(problems) == len(data.train_prompts) + 40
    assert data.notes == (
        f"data.train=1000: only {len(data.train_prompts)} training problems are left beside the held-out ones",
    )


def test_a_problem_and_its_mirror_are_never_on_both_sides():
    data = sums()
    train = {tuple(sorted(terms(prompt))) for prompt in data.train_prompts}
    heldout = {tuple(sorted(terms(prompt))) for prompt in data.heldout_prompts}
    assert not train & heldout
    assert (3, 4) in train | heldout


def test_the_prompt_asks_and_the_demonstration_answers():
    data = sums()
    shown = next(d for d in data.demonstrations if terms(d.prompt) in ((1, 9), (9, 1)))
    a, b = terms(shown.prompt)
    assert shown.prompt.text == f"What is {a} + {b}? Answer with the number."
    assert shown.prompt.info["answer"] == 10
    assert shown.response == f"{a} + {b} = 10."


def test_chosen_answers_are_right_and_rejected_ones_wrong_by_the_verifier():
    data = sums()
    assert len(data.train_pairs) == len(data.train_prompts) and len(data.heldout_pairs) == 40
    for pair in data.train_pairs + data.heldout_pairs:
        chosen, rejected = (Sample("", text, (), (), True, pair.prompt.info) for text in (pair.chosen, pair.rejected))
        assert data.verifier([chosen, rejected]) == [1.0, 0.0]
        assert int(find_last_integer(pair.rejected)) >= 0


def test_held_out_problems_do_not_depend_on_the_seed_and_training_ones_do_when_there_is_a_choice():
    one, two = sums(seed=0, high=99, train=50), sums(seed=1, high=99, train=50)
    assert one.heldout_prompts == two.heldout_prompts
    assert one.train_prompts != two.train_prompts
    assert len(one.train_prompts) == 50
    assert one.fingerprint != two.fingerprint


def test_where_there_is_no_choice_all_seeds_share_one_fingerprint():
    assert sums(seed=0).fingerprint == sums(seed=1).fingerprint != sums(heldout=42).fingerprint


def test_a_million_problems_are_sampled_not_listed():
    data = sums(terms=6, low=-50, high=99, train=300, heldout=100)
    assert (len(data.train_prompts), len(data.heldout_prompts)) == (300, 100)
    assert all(prompt.text.count("+") == 5 for prompt in data.train_prompts)


def test_negative_terms_stand_in_brackets():
    data = sums(low=-3, high=-1, heldout=2)
    assert all("(-" in prompt.text and "+ -" not in prompt.text for prompt in data.train_prompts)


def test_three_terms_hold_out_at_most_two_orders_of_each_problem():
    data = sums(terms=3, heldout=40)
    classes = [tuple(sorted(terms(prompt))) for prompt in data.heldout_prompts]
    assert max(classes.count(problem) for problem in classes) == 2


@pytest.mark.parametrize("changes", [{"heldout": 100}, {"heldout": 99}, {"low": 3, "high": 3, "heldout": 1}])
def test_holding_out_everything_is_refused_with_the_fix(changes):
    with pytest.raises(DataError, match=rf"data.heldout={changes['heldout']}: .* raise data.high or data.terms"):
        sums(**changes)


def gym(monkeypatch, items):
    """A reasoning_gym with one dataset that repeats the given (question, answer) items."""

    def create_dataset(name, size, seed):
        if name != "toy":
            raise ValueError(f"Dataset '{name}' not registered")
        return [{"question": q, "answer": a} for q, a in (items * (size // len(items) + 1))[:size]]

    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=create_dataset))


def test_a_reasoning_gym_dataset_with_integer_answers_becomes_prompts_and_pairs(monkeypatch):
    gym(monkeypatch, [(f"What is {i} squared?", str(i * i)) for i in range(60)])
    data = sums(task="toy", train=30, heldout=20)
    assert (len(data.train_prompts), len(data.heldout_prompts)) == (30, 20)
    assert not {p.text for p in data.train_prompts} & {p.text for p in data.heldout_prompts}
    assert data.demonstrations[0].response == f"The answer is {data.train_prompts[0].info['answer']}."
    assert any("not read" in note for note in data.notes)


def test_a_reasoning_gym_dataset_with_other_answers_is_refused(monkeypatch):
    gym(monkeypatch, [("Who is a knave?", "Riley")])
    with pytest.raises(DataError, match="data.task=toy: found the answer 'Riley'.*integers"):
        sums(task="toy")


def test_a_reasoning_gym_dataset_that_runs_dry_is_refused(monkeypatch):
    gym(monkeypatch, [("1?", "1"), ("2?", "2")])
    with pytest.raises(DataError, match="data.heldout=3: task=toy has 2 distinct"):
        sums(task="toy", heldout=3)
    with pytest.raises(DataError, match="no problems left to train on"):
        sums(task="toy", heldout=2)


def test_an_unknown_task_and_a_missing_package_say_what_to_do(monkeypatch):
    gym(monkeypatch, [("1?", "1")])
    with pytest.raises(DataError, match='data.task=mul: .*"sum" or the name of a reasoning_gym dataset'):
        sums(task="mul")
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match="pip install reasoning-gym"):
        sums(task="toy")
