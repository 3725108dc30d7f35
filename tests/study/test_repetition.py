"""Sentences behind their copies and decoders: the quantity by hand, scored rows, a study on the tiny model."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from torch import tensor

from align.data.annotator import pool_prompts, read_pool
from align.models import Policy
from align.refusals import ConfigError
from align.stages import SHIPPED
from align.study import __main__ as cli
from align.study import engine, repetition, settings
from align.study.repetition import Copies, decode, draw, encode, last_sentence
from reward_models.verifiers import one_sentence
from tests.study.fakes import TRAINED
from tests.trainers.tiny import TOKENIZER, base

POOL = SHIPPED / "pool-1e3c1186a8ae.jsonl.gz"
OWN = {"sentences": 2, "copies": None, "of": "itself", "continued": 2, "tokens": 24, "temperature": 0.0, "top_p": 1.0,
       "beams": 1, "penalty": 1.0}  # fmt: skip
SAID = {(0, "a"): "Bees dance.", (0, "b"): "It rains.", (1, "a"): "Bees make honey.", (1, "b"): "Rain is wet."}


def own(**changes) -> settings.Repetition:
    return settings.Repetition(**(OWN | changes))


@pytest.fixture(scope="module")
def policy() -> Policy:
    model = base().eval()
    return Policy(model, model, TOKENIZER, (TOKENIZER.eos_token_id,), "tiny")


# --- behind copies ---


def test_of_a_copy_every_token_counts_but_the_first():
    """Six tokens, twice the same three; the first of all has none, the first of the copy does not count."""
    logprobs = tensor([-1.0, -2.0, -9.0, -3.0, -5.0])
    assert last_sentence(logprobs, 3, 3) == -1.5 and last_sentence(logprobs, 6, 3) == -4.0


@torch.no_grad()
def plainly(policy: Policy, before: str, sentence: str) -> float:
    """By transformers' own forward pass over the whole text."""
    context, ids = encode(policy, before) if before else (), encode(policy, sentence)
    row = tensor([[*context, *ids]])
    logprobs = policy.reference(row).logits[0].log_softmax(-1)
    return float(tensor([logprobs[len(context) + i - 1, ids[i]] for i in range(1, len(ids))]).mean())


@pytest.mark.parametrize("k", [0, 1, 3])
def test_behind_k_copies_is_what_the_model_says_of_the_whole_text(policy, k):
    found = Copies(policy, 3).measure(own(copies=k), SAID)
    for key, sentence in SAID.items():
        said = " ".join([sentence] * k)
        assert found[key]["copy_logprob"] == pytest.approx(plainly(policy, said, sentence), abs=1e-5)


def test_another_is_the_next_prompts_sentence_of_the_same_seed(policy):
    found = Copies(policy, 3).measure(own(copies=2, of="another"), SAID)
    for key, before in {(0, "a"): "It rains.", (0, "b"): "Bees dance.", (1, "b"): "Bees make honey."}.items():
        said = f"{before} {before}"
        assert found[key]["copy_logprob"] == pytest.approx(plainly(policy, said, SAID[key]), abs=1e-5)


def test_one_pass_serves_every_k(policy, monkeypatch):
    passes = []
    monkeypatch.setattr(repetition, "score", lambda *a, whole=repetition.score, **k: passes.append(1) or whole(*a, **k))
    copies = Copies(policy, 4)
    values = [copies.measure(own(copies=k), SAID)[0, "a"]["copy_logprob"] for k in (0, 1, 2, 4)]
    assert len(passes) == 1 and len(set(values)) == 4


def test_a_model_that_knows_nothing_finds_no_copy_likelier():
    model = base().eval()
    model.get_input_embeddings().weight.zero_()  # tied: all logits are 0
    lost = Policy(model, model, TOKENIZER, (TOKENIZER.eos_token_id,), "tiny")
    uniform = -float(torch.tensor(len(TOKENIZER)).log())
    for k in (0, 4):
        found = Copies(lost, 4).measure(own(copies=k), SAID)
        assert [row["copy_logprob"] for row in found.values()] == pytest.approx([uniform] * 4)


# --- which sentences ---


def test_a_seed_has_other_sentences_to_the_same_prompts():
    pool = read_pool(POOL)
    said = draw(pool, 40, [0, 1, 2, 3, 4])
    names = [[name for seed, name in said if seed == s] for s in range(5)]
    assert len(set(names[0])) == 40 and all(row == names[0] for row in names)
    assert len(set(said.values())) == 200 and all(one_sentence(text) for text in said.values())
    texts = {(row.prompt_id, row.text.strip()) for row in pool.rows}
    assert all((name, text) in texts for (_, name), text in said.items())
    assert draw(pool, 40, [4, 1]) == {key: text for key, text in said.items() if key[0] in (1, 4)} and pool_prompts()
    with pytest.raises(ConfigError, match=r"repetition.sentences=400: the pool has 115 prompts with 5 such answers"):
        draw(pool, 400, [4])


# --- decoders ---


@torch.no_grad()
def by_hand(policy: Policy, start: tuple[int, ...], many: int) -> list[int]:
    row = [*start]
    for _ in range(many):
        logits = policy.reference(tensor([row])).logits[0, -1]
        logits[sorted(TOKENIZER.all_special_ids)] = -torch.inf
        row.append(int(logits.argmax()))
    return row[len(start) :]


def test_greedy_takes_the_likeliest_token_that_is_not_special(policy):
    starts = [encode(policy, text) for text in SAID.values()]  # of different lengths, so padded
    found = decode(policy, own(), starts)
    assert found == [by_hand(policy, start, 24) for start in starts]
    assert decode(policy, own(temperature=1.0, top_p=1e-6), starts) == found
    assert decode(policy, own(beams=3), starts) != found


def test_samples_are_the_same_twice_never_end_and_are_cut_by_no_top_k(policy):
    starts = [encode(policy, "Bees dance.")] * 16
    found = decode(policy, own(temperature=20.0, tokens=64), starts)
    assert found == decode(policy, own(temperature=20.0, tokens=64), starts)
    drawn = {token for row in found for token in row}
    assert {len(row) for row in found} == {64} and not drawn & {*TOKENIZER.all_special_ids}
    assert (
        len({row[0] for row in decode(policy, own(temperature=1e4, tokens=3), starts * 20)}) > 50
    )  # generate's default


def test_a_penalty_without_bounds_says_nothing_twice(policy):
    [row] = decode(policy, own(penalty=1e9, tokens=64), [encode(policy, "Bees dance.")])
    assert len(set(row)) == 64
    looped = repetition.continued(policy, own(tokens=128), SAID)[0, "a"]["rep3"]
    assert looped > repetition.continued(policy, own(tokens=128, penalty=1e9), SAID)[0, "a"]["rep3"] == 0


def test_decoders_go_on_from_the_first_prompts_of_each_seed(policy):
    found = repetition.continued(policy, own(continued=1), SAID)
    assert [*found] == [(0, "a"), (1, "a")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"of": "another"}, "repetition.of=another: .*give repetition.copies one or more"),
        ({"of": "another", "copies": 0}, "repetition.of=another"),
        ({"copies": -1}, "repetition.copies=-1: must be null, 0 or more"),
        ({"continued": 3}, "repetition.continued=3: must be at most repetition.sentences=2"),
        ({"tokens": 2}, "repetition.tokens=2: must be 3 or more"),
        ({"temperature": 1.0, "beams": 4}, "repetition.beams=4: .*use repetition.temperature=0"),
        ({"top_p": 0.9}, "repetition.top_p=0.9: .*temperature above 0"),
        ({"penalty": 0.5}, "repetition.penalty=0.5: must be >= 1"),
    ],
)
def test_what_no_arm_can_be_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        own(**changes)


# --- the whole, on the tiny model ---

BASE = ["algo=best_of_n", "reward=gold", "data=annotator", "model=tiny", "steps=1", "tracker=none", "device=cpu",
        "dtype=float32", f"data.pool.path={POOL}",
        *(f"repetition.{key}={json.dumps(value)}" for key, value in (OWN | {"tokens": 12}).items())]  # fmt: skip
STUDY = {key: value for key, value in TRAINED.items() if key not in ("mitigations", "cure")} | {
    "kind": "measured",
    "module": "repetition",
    "base": BASE,
    "tiers": {"cpu": []},
    "arms": {"greedy": [], **{f"k{k}": [f"repetition.copies={k}"] for k in (0, 1, 2, 4)}},
    "controls": {"another": ["repetition.copies=4", "repetition.of=another"]},
    "seeds": [0, 1],
    "primary": {"metric": "copy/logprob", "rule": "dose", "levels": {f"k{k}": k for k in (0, 1, 2, 4)}, "direction": 1,
                "margin": 0.7},
    "gates": {"text/rep3": {"greedy": [0, 1]}},
}  # fmt: skip


def test_the_command_measures_every_arm_and_tells_of_it(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(STUDY, allow_unicode=True), encoding="utf-8")
    arguments = [f"study={tmp_path}/mine.yaml", f"out={tmp_path}/out", f"runs_root={tmp_path}/runs"]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    kept = json.loads((tmp_path / "out/made_up/verdict.json").read_text("utf-8"))
    assert kept["primary"]["metric"] == "copy/logprob" and kept["seeds"] == 2 and kept["outcome"] != "INVALID"
    ends = {arm: facts["metrics"] for arm, facts in kept["arms"].items()}
    assert [*ends] == ["greedy", "k0", "k1", "k2", "k4", "another"] and [*ends["greedy"]] == ["text/rep3"]
    assert all(-8 < ends[arm]["copy/logprob"]["end"] < -3 for arm in ends if arm != "greedy")  # ln 261 is 5.6
    assert "log-probability of a sentence behind copies" in (tmp_path / "out/made_up/index.html").read_text("utf-8")


def test_arms_of_different_numbers_of_sentences_are_refused(tmp_path):
    from align.study import spec

    study = spec.parse(STUDY | {"arms": STUDY["arms"] | {"greedy": ["repetition.sentences=3"]}})
    tasks = engine.expand(engine.plan(study, "cpu", None, (), tmp_path))
    with pytest.raises(ConfigError, match=r"repetition.sentences=\[2, 3\]: must be the same in all arms"):
        repetition.measure(tasks)
    with pytest.raises(ConfigError, match="arm greedy: steps=2: module=repetition measures once"):
        engine.expand(engine.plan(study, "cpu", None, ("steps=2",), tmp_path))
