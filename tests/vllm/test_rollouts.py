"""Completions of servers are the policy's, each there once, whatever servers do; or the rollout fails in words.

Two servers where the fault is one server's, so that the other can take over.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from align.data.tokens import encode_prompt
from align.maths.draw import warp
from align.refusals import ConfigError
from align.seeds import derive
from align.vllm_rollouts import RolloutError, in_turn
from tests.vllm import rollouts
from tests.vllm.rollouts import PROMPTS, ask, gap, move

SAMPLES = 4


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("align.vllm_rollouts.PAUSE", 0.0)


@pytest.fixture(scope="module")
def untouched():
    return rollouts.policy()


def seeds(seed: int) -> set[int]:
    return {derive(seed, prompt.id, k) for prompt in PROMPTS for k in range(SAMPLES)}


def check_whole(role, completions, seed, *fakes):
    """Each (prompt, sample) is there once, in its row, with the logprobs that the trainer gives its tokens."""
    assert [p.id for p in completions.prompts] == [p.id for p in PROMPTS for _ in range(SAMPLES)]
    assert completions.prompt_ids == tuple(tuple(encode_prompt(role.tokenizer, p)) for p in completions.prompts)
    assert gap(role, completions) < 1e-4
    ended = [row[mask].tolist()[-1] in role.stop_ids for row, mask in
             zip(completions.ids, completions.mask, strict=True)]  # fmt: skip
    assert completions.finished.tolist() == ended
    assert not completions.logprobs[~completions.mask].any()
    sent = [s for fake in fakes for s, _ in fake.answered if s in seeds(seed)]
    assert set(sent) == seeds(seed)
    return sent


def test_completions_are_those_of_the_policy_and_depend_on_the_seed(fakes, tmp_path, untouched):
    fake = fakes()
    made = rollouts.sampler(tmp_path, untouched, fake)
    first = ask(made)
    assert len(check_whole(untouched, first, 0, fake)) == len(seeds(0))  # asked once each
    assert first.finished.any() and not first.finished.all()
    again, other = ask(made), ask(made, seed=1)
    assert torch.equal(first.ids, again.ids) and torch.equal(first.logprobs, again.logprobs)
    assert first.texts != other.texts
    assert made.told() == []
    assert len(fake.loaded) == 1


def test_they_are_drawn_as_often_as_the_policy_says(fakes, tmp_path, untouched):
    cold = ("sampling.max_new_tokens=1", "sampling.temperature=0.07")  # at 1 the tiny model is nearly uniform
    made = rollouts.sampler(tmp_path, untouched, fakes(), overrides=cold)
    drawn = made(untouched, PROMPTS[:1], 400, made.cfg, 0)
    with torch.no_grad():
        logits = untouched.model(input_ids=torch.tensor([drawn.prompt_ids[0]])).logits[0, -1]
    probs = warp(logits, 0.07).softmax(-1)
    expected = 400 * probs
    counts = torch.bincount(drawn.ids[:, 0], minlength=len(probs)).float()
    common = expected >= 5  # chi-squared over these and the rest together
    pairs = [*zip(counts[common], expected[common], strict=True), (counts[~common].sum(), expected[~common].sum())]
    chi = sum(float((c - e) ** 2 / e) for c, e in pairs if e > 0)
    assert len(pairs) > 5
    assert chi < len(pairs) + 4 * (2 * len(pairs)) ** 0.5  # four standard deviations


def test_after_an_update_the_new_adapter_is_used_and_the_old_one_let_go(fakes, tmp_path):
    role, fake = rollouts.policy(), fakes()
    made = rollouts.sampler(tmp_path, role, fake)
    ask(made)
    (before,) = fake.adapters
    move(role, 0.3, seed=3)
    check_whole(role, ask(made, seed=5), 5, fake)
    (now,) = fake.adapters
    assert before != now
    assert [folder.name for folder in (tmp_path / "sent").iterdir()] == [now]
    made.close()
    assert not fake.adapters and not (tmp_path / "sent").exists()


def test_several_servers_share_the_prompts(fakes, tmp_path, untouched):
    one, two = fakes(), fakes()
    check_whole(untouched, ask(rollouts.sampler(tmp_path, untouched, one, two)), 0, one, two)
    shares = [{s for s, _ in fake.answered} & seeds(0) for fake in (one, two)]
    halves = [{derive(0, p.id, k) for p in half for k in range(SAMPLES)} for half in (PROMPTS[:2], PROMPTS[2:])]
    # whole prompts; on a busy machine a connection is refused at times, and its request goes to the other
    assert all(len(share & half) >= 6 for share, half in zip(shares, halves, strict=True))


# Faults after a good canary: the second server fails in the middle of a rollout.
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("die", "cannot be asked"),
        ("hang", "took more than 5 s"),
        ("error", "500"),
        ("torn", "damaged JSON"),
        ("cut", "bytes|cannot be asked"),
        ("ids", "tokens"),
        ("nan", "nan"),
        ("none", "None"),
        ("name", "the model base"),
        ("prompt", "another prompt"),
        ("forgets", "404"),
        ("vocabulary", "has another model than the trainer: it answered with token 1000000000000000"),
    ],
)
def test_a_server_that_fails_in_a_rollout_loses_nothing(fakes, tmp_path, untouched, fault, said):
    good, bad = fakes(), fakes()
    made = rollouts.sampler(tmp_path, untouched, good, bad)
    ask(made, seed=9)
    bad.fault = fault
    sent = check_whole(untouched, ask(made), 0, good, bad)
    (sentence,) = made.told()
    assert bad.url in sentence and any(words in sentence for words in said.split("|"))
    used = {s for s, _ in good.answered} & seeds(0)
    if fault in ("die", "hang", "error", "forgets"):  # the others did send what was not used
        assert sorted(sent) == sorted(set(sent))
        assert used == seeds(0)


def test_servers_are_asked_in_turn_each_for_its_share_of_neighbours():
    """In the order of the requests all threads would ask the first server, and the second had nothing to do."""
    assert in_turn([0, 1, 2, 3, 4], "AB") == [(0, "A"), (2, "B"), (1, "A"), (3, "B"), (4, "B")]
    assert in_turn([7], "AB") == [(7, "B")] and in_turn([3, 5], "A") == [(3, "A"), (5, "A")]


def test_the_canary_does_not_end_with_an_answer_that_was_learned_to_be_short(fakes, tmp_path, untouched):
    fake = fakes()
    made = rollouts.sampler(tmp_path, replace(untouched, stop_ids=tuple(range(261))), fake)
    made.begin()
    ((_, tokens),) = fake.answered
    assert tokens == made.canary.limit == 8


def test_a_server_that_is_slow_but_within_its_limit_is_used(fakes, tmp_path, untouched):
    slow = fakes(fault="slow")
    made = rollouts.sampler(tmp_path, untouched, slow)
    check_whole(untouched, ask(made), 0, slow)
    assert made.told() == []


def test_a_server_that_is_well_again_takes_part_in_the_next_rollout(fakes, tmp_path, untouched):
    one, two = fakes(), fakes()
    made = rollouts.sampler(tmp_path, untouched, one, two)
    ask(made, seed=9)
    two.fault = "error"
    ask(made)
    two.fault = ""
    ask(made, seed=4)
    assert {s for s, _ in two.answered} & seeds(4)


def test_the_only_server_is_asked_again_and_given_the_adapter_it_lost(fakes, tmp_path, untouched):
    fake = fakes()
    made = rollouts.sampler(tmp_path, untouched, fake)
    ask(made, seed=9)
    fake.fault, fake.times = "forgets", 1
    sent = check_whole(untouched, ask(made), 0, fake)
    assert len(sent) == len(set(sent))
    assert len(fake.loaded) == 2
    assert "404" in made.told()[0]


@pytest.mark.parametrize("fault", ["load_error", "load_hang"])
def test_an_adapter_that_a_server_has_is_used_whatever_it_said_when_it_was_sent(fakes, tmp_path, untouched, fault):
    fake = fakes(fault=fault)
    made = rollouts.sampler(tmp_path, untouched, fake, overrides=("sampling.vllm.seconds=3",))
    check_whole(untouched, ask(made), 0, fake)
    assert len(fake.loaded) == 1 and made.told() == []


def test_a_rollout_that_no_server_can_give_fails_and_says_what_they_said(fakes, tmp_path, untouched):
    one, two = fakes(), fakes()
    made = rollouts.sampler(tmp_path, untouched, one, two, overrides=("sampling.vllm.retries=1",))
    made.begin()
    one.fault, two.fault = "error", "none"
    with pytest.raises(RolloutError, match="16 of 16 completions .* 2 attempts") as failure:
        ask(made)
    assert "500" in str(failure.value) and "None" in str(failure.value)
    assert one.url in str(failure.value) and two.url in str(failure.value)


def test_a_server_that_keeps_serving_old_weights_is_found_out(fakes, tmp_path):
    role, good, stale = rollouts.policy(), fakes(), fakes()
    made = rollouts.sampler(tmp_path, role, good, stale, overrides=("sampling.vllm.gap=0.05",))
    ask(made, seed=9)
    stale.fault = "stale"
    move(role, 1.0, seed=3)
    check_whole(role, ask(made), 0, good)
    (sentence,) = made.told()
    assert f"{stale.url} has other weights than the trainer" in sentence
    assert "sampling.vllm.gap=0.05" in sentence
    assert not {s for s, _ in stale.answered} & seeds(0)


def test_a_server_with_another_base_is_refused_before_the_first_step(fakes, tmp_path, untouched):
    fake = fakes()
    with torch.no_grad():
        for parameter in fake.base.parameters():
            parameter.mul_(2)
    with pytest.raises(ConfigError, match="has other weights than the trainer"):
        rollouts.sampler(tmp_path, untouched, fake).begin()


def test_no_server_at_the_start_is_the_users_mistake(fakes, tmp_path, untouched):
    fake = fakes()
    fake.stop()
    with pytest.raises(ConfigError, match=f"no server is ready:\n.*{fake.url} cannot be asked"):
        rollouts.sampler(tmp_path, untouched, fake).begin()


def test_temperature_is_that_of_the_config(fakes, tmp_path, untouched):
    made = rollouts.sampler(tmp_path, untouched, fakes(), overrides=("sampling.temperature=0.5",))
    completions = ask(made)
    assert gap(untouched, completions, temperature=0.5) < 1e-4 < gap(untouched, completions)


def test_an_interrupt_waits_for_no_answer(fakes, tmp_path, untouched, monkeypatch):
    fake = fakes()
    made = rollouts.sampler(tmp_path, untouched, fake, overrides=("sampling.vllm.seconds=25",))
    made.begin()
    fake.fault = "hang"

    def interrupted(_):
        time.sleep(0.3)
        raise KeyboardInterrupt

    monkeypatch.setattr("align.vllm_rollouts.as_completed", interrupted)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ask(made)
    for _ in range(50):
        if not made.servers[0].open:
            break
        time.sleep(0.1)
    assert not made.servers[0].open and time.monotonic() - started < 10
