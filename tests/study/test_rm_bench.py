"""Rewards on the bench: right and wrong by hand, and a study whose answers are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from align.data.annotator import PoolRow, prompts
from align.data.tokens import encode_completion, encode_prompt
from align.models import load_policy
from align.refusals import ConfigError
from align.study import engine, rm_bench, settings, spec, verdict
from align.study.ground import Taught
from align.study.rm_bench import Ground, verdicts
from align.study.rules import CONFIRMED
from reward_models.annotator import Answer, fit_scale
from tests.config.test_conf import composed

# rows 0..5 have the rewards of `REWARDS`
PAIRS = {
    "chat": [("a", 0, 1), ("b", 2, 3)],
    "chat_hard": [("a", 1, 0), ("c", 0, 5)],
    "length": [("a", 4, 4)],
    "refusal": [("b", 5, 0)],
    "arithmetic": [("sum", 0, 5)],
    "ties": [("a", 0, 1)],
}
REWARDS = np.array([3.0, 1.0, 2.0, 6.0, 5.0, 0.0])


def test_right_is_one_wrong_is_none_and_equal_is_half():
    probes, rows = verdicts(PAIRS, REWARDS)
    assert probes[1] == {
        "bench/chat": 0.5, "bench/chat_hard": 0.5, "bench/length": 0.5, "bench/refusal": 0.0, "bench/arithmetic": 1.0,
        "bench/hard_gap": 1.0,  # of prompt a alone, which has both: right on the easy pair, wrong on the hard one
        "bench/ties": 2 / 3,  # 2, over the mean of 2 and 4
    }  # fmt: skip
    assert rows[1]["a", 0] == {"bench_chat": 1, "bench_chat_hard": 0, "bench_length": 0.5, "bench_hard_gap": 1}
    assert rows[1]["c", 0] == {"bench_chat_hard": 1}


def test_step_0_is_a_coin():
    probes, rows = verdicts(PAIRS, REWARDS)
    assert {key: value for key, value in probes[0].items() if value != 0.5} == {"bench/hard_gap": 0.0}
    assert rows[0].keys() == rows[1].keys() and rows[0]["b", 0] == {"bench_chat": 0.5, "bench_refusal": 0.5}


@torch.no_grad()
def test_the_implicit_reward_is_the_mean_log_probability_of_an_answers_tokens():
    policy = load_policy(composed("model=tiny").model, torch.device("cpu"), torch.float32, 0)
    asked = prompts("valid")[:2]
    rows = [PoolRow(p.id, k, text, 0, True) for p in asked for k, text in enumerate(("No.", "Bees make honey."))]
    found = rm_bench.answer_logprobs(policy, rows, asked)
    for row, value in zip(rows, found, strict=True):
        prompt = encode_prompt(policy.tokenizer, next(p for p in asked if p.id == row.prompt_id))
        answer = encode_completion(policy.tokenizer, row.text)
        logprobs = policy.reference(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        own = [float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(answer)]
        assert value == pytest.approx(np.mean(own), abs=1e-5)


# --- arms on answers that are made up: features are gold, length and noise ---


def made_up(tasks) -> Ground:
    rng = np.random.default_rng(0)

    def answer(prompt):
        words = [*prompt.info["words"], *prompt.info["keywords"]]
        text = " ".join(rng.choice(words, size=int(rng.integers(1, 12)))).replace("*", "") + rng.choice([".", ""])
        return Answer(text, int(rng.integers(8, 60)), True, prompt.info)

    train = {prompt.id: [answer(prompt) for _ in range(8)] for prompt in prompts("train")}
    scale = fit_scale(list(train.values()))

    def features(gold, tokens):
        columns = [gold + rng.normal(size=gold.shape), tokens, *rng.normal(size=(4, *gold.shape))]
        return np.stack(columns, -1)

    table = np.array([[rm_bench.gold(a, scale) for a in group] for group in train.values()])
    tokens = np.array([[a.tokens for a in group] for group in train.values()]) / 20
    taught = Taught(train, {1.0: rm_bench.heads.centred(features(table, tokens)).reshape(-1, 6)}, scale)
    # of every prompt: a good short answer, a bad long one
    judged, long = np.tile([1.0, -1.0], 40), np.tile([0.5, 3.5], 40)
    pairs = {name: [(f"p{x}", 2 * x, 2 * x + 1) for x in range(40)] for name in PAIRS}
    return Ground(taught, pairs, {1.0: features(judged, long)}, judged, long, judged.reshape(-1, 2), np.ones((40, 2)),
                  {"start_fingerprint": "s", "data_fingerprint": "d"})  # fmt: skip


CHANGES = ["model=tiny", "rm_bench.depth=1", "rm_bench.rank=6", "rm_bench.pairs=40"]


def arms_of(tmp_path: Path, monkeypatch) -> verdict.Found:
    monkeypatch.setattr(rm_bench, "lay", made_up)
    study = spec.load(spec.find("rm_bench"))
    tasks = engine.expand(engine.plan(study, "cpu", None, CHANGES, tmp_path))
    return verdict.examine(study, rm_bench.measure(tasks))


def test_labels_that_favour_length_turn_a_reward_and_the_decorrelated_head_turns_it_back(tmp_path, monkeypatch):
    found = arms_of(tmp_path, monkeypatch)
    assert found.verdict.outcome == CONFIRMED and found.verdict.effect < -0.05
    end = {name: np.mean([run.value(1, "bench/length") for run in arm.seeds]) for name, arm in found.arms.items()}
    assert end["longer"] == 0 and end["logprob"] == 1  # here made equal to gold
    assert end["biased"] < 0.45 < 0.7 < end["decorrelated"]
    assert found.controls[0].verdict.outcome != CONFIRMED and found.cured[0].works


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("rm_bench.reward=lenght", 'rm_bench.reward=lenght: .*did you mean "length"'),
        ("rm_bench.gap=0", "rm_bench.gap=0.*: must be > 0"),
        ("rm_bench.pairs=0", "rm_bench.pairs=0: must be >= 1"),
        ("rm_bench.depth=2", "rm_bench.depth=2: must be > 0 and <= 1"),
    ],
)
def test_what_no_arm_can_be_is_refused(change, said):
    study = spec.load(spec.find("rm_bench"))
    own = engine.merged(study.base, study.tiers["cpu"], [change])
    with pytest.raises(ConfigError, match=said):
        settings.read("rm_bench", settings.split("rm_bench", own)[1])
