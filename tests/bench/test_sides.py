"""Both sides do the same work: the recorded lengths, whatever the model says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from align.bench.__main__ import main
from align.bench.inputs import inputs
from align.bench.settings import experiment, settings
from align.bench.stamps import Stamps
from align.embedded import tiny_folder
from align.models import load_tokenizer
from align.schema import Model
from tests.end_to_end.helpers import BY_COMMAND

LENGTHS = [9, 3, 1, 5]  # of each prompt's four completions


@pytest.fixture(scope="module")
def rollout():
    """The row of 4 x 4 with short completions, and the run that our side of it is a part of."""
    bench = settings(["model=tiny", "works=grpo_4x4", "steps=1", "device=cpu"])
    work = replace(bench.works[0], lengths=(tuple(LENGTHS),) * 4)
    return experiment(bench, work), work


def test_our_completions_have_the_recorded_lengths(rollout, monkeypatch):
    from align.bench import ours
    from align.trainers import on_policy

    seen = []

    class Watched(on_policy.OnPolicyTrainer):
        def answered(self, *args):
            found = super().answered(*args)
            seen.append(found.completions.lengths.tolist())
            return found

    monkeypatch.setattr(on_policy, "OnPolicyTrainer", Watched)
    stamps = Stamps()
    ours.measure(*rollout, stamps)
    assert seen == [LENGTHS * 4] * 2
    assert len(stamps.seconds(warmup=1)) == 1


def test_trls_completions_have_the_recorded_lengths(rollout, monkeypatch):
    from align.bench import stock

    seen = []

    def reward(completions):
        seen.append([len(ids) for ids in completions])
        return [float(i) for i in range(len(completions))]

    monkeypatch.setattr(stock, "bench_reward", reward)
    stamps = Stamps()
    stock.measure(*rollout, stamps)
    assert seen == [LENGTHS * 4] * 2
    assert len(stamps.seconds(warmup=1)) == 1


def test_eos_is_impossible_before_a_rows_length_and_certain_at_it():
    from align.bench.stock import ForcedLengths

    force = ForcedLengths([2, 1], eos=[3, 4])
    first = force(torch.zeros(2, 7), torch.zeros(2, 5)).softmax(-1)
    assert first[0].tolist() == pytest.approx([1 / 3] * 3 + [0, 0])
    assert first[1].tolist() == [0, 0, 0, 1, 0]
    second = force(torch.zeros(2, 8), torch.zeros(2, 5)).softmax(-1)
    assert second[0].tolist() == [0, 0, 0, 1, 0]


def test_padded_prompts_are_as_long_as_asked_for_to_a_word():
    (work,) = settings(["works=grpo_8x8"]).works
    tokenizer = load_tokenizer(Model("tiny", "tiny", None, None, None))
    work = replace(work, prompt_tokens=400)  # bytes
    given = inputs(work, tokenizer)
    assert tiny_folder().is_dir() and len(given.prompt_ids) == 8
    assert all(380 <= len(ids) <= 400 for ids in given.prompt_ids)
    assert all(prompt.text.startswith("Notes: ") for prompt in given.prompts)


@BY_COMMAND
def test_a_small_bench_from_the_command_line(tmp_path, capsys):
    assert main(["model=tiny", "works=ppo_4x4", "repeats=1", "steps=1", "device=cpu", f"out={tmp_path}"]) == 0
    (row,) = json.loads((tmp_path / "bench.json").read_text())
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "bench.json")
    assert row["work"] == "ppo_4x4" and row["ours_s"] > 0 and row["limit_ratio"] > 1 and row["ours_peak_gb"] > 0.1
    assert row["trl_s"] is row["speedup"] is row["peak_ratio"] is row["grpo_ratio"] is None


def test_trls_model_has_none_of_our_layers(rollout):
    from align.bench import stock

    run, work = rollout
    given = inputs(work, load_tokenizer(run.model))
    trainer = stock.TRAINERS["grpo"](run, work.trl, load_tokenizer(run.model), given, Stamps())
    assert not [type(module) for module in trainer.model.modules() if type(module).__module__.startswith("align")]
