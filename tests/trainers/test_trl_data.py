"""What TRL's trainers are trained on: our ids in our order, EOS last."""

from __future__ import annotations

import pytest
import torch

from align.data.errors import DataError
from align.trainers import trl_data, trl_losses, trl_runs
from tests.trainers import tiny

EOS = tiny.TOKENIZER.eos_token_id


def test_a_run_longer_than_its_data_goes_through_whole_shuffled_epochs():
    order = trl_data.training_order(count=5, draws=12, seed=1)
    assert len(order) == 12
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert order[:5] != order[5:10]


def answers(name: str, batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """The tokens each row of a collated batch is trained on, EOS and whatever stands after it included."""
    if name == "reward":  # a reward model reads its score at the last token that is no pad
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        return [ids[mask.bool()].tolist() for ids, mask in rows]
    if name == "sft":
        return [row[row != trl_data.IGNORED].tolist() for row in batch["labels"]]
    if name == "orpo":
        rows = [*batch["chosen_labels"], *batch["rejected_labels"]]
        return [row[row != trl_data.IGNORED].tolist() for row in rows]
    prefixes = ("", "KL_") if name == "kto" else ("",)
    return [
        ids[mask.bool()].tolist()
        for prefix in prefixes
        for ids, mask in zip(batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"], strict=True)
    ]


@pytest.mark.parametrize("name", (*tiny.KNOBS, "sft", "reward"))
def test_the_last_trained_token_is_eos_once_with_nothing_after_it(name, tmp_path):
    text = tiny.TOKENIZER.apply_chat_template([{"role": "assistant", "content": "ok"}], tokenize=False)
    assert text.endswith("<|end|>\n"), "the template must be one that puts something after EOS"
    if name == "reward":
        kind, experiment, model = trl_losses.REWARD, tiny.reward(), tiny.reward_model()
        rows = trl_data.reward_rows(tiny.TOKENIZER, tiny.PAIRS)
    elif name == "sft":
        kind, experiment, model = trl_losses.SFT, tiny.sft(), tiny.lora_policy()
        rows = trl_data.demonstration_rows(tiny.TOKENIZER, tiny.DEMONSTRATIONS)
    else:
        kind, experiment, model = trl_losses.PREFERENCE[name], tiny.preference(name), tiny.lora_policy()
        rows = kind.layout(trl_data.pair_rows(tiny.TOKENIZER, tiny.PAIRS), len(tiny.PAIRS))
    trainer = trl_runs.build_trainer(kind, experiment, model, rows, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    found = answers(name, batch)
    prompts = 1 if name == "reward" else 0  # a prompt has one EOS of its own, at the end of the user's turn
    assert len(found) >= 2
    assert all(ids[-1] == EOS and ids.count(EOS) == 1 + prompts for ids in found)
    assert all((batch[key] == tiny.TOKENIZER.pad_token_id).any() for key in batch if key.endswith("input_ids"))


def test_ktos_mismatched_answers_belong_to_another_prompt_of_the_same_step():
    a, b, c = ({"prompt_ids": [i], "chosen_ids": [10 + i], "rejected_ids": [20 + i]} for i in range(3))
    again = {"prompt_ids": [0], "chosen_ids": [15], "rejected_ids": [25]}
    rows = trl_data.kto_rows([a, again, b, c, a, b], pairs_per_step=3)
    assert [row["completion_ids"] for row in rows] == [
        [10], [20], [15], [25], [11], [21], [12], [22], [10], [20], [11], [21]]  # fmt: skip
    assert [row["KL_completion_ids"] for row in rows] == [
        [11], [21], [11], [21], [10], [20], [10], [20], [11], [21], [12], [22]]  # fmt: skip
    assert [row["label"] for row in rows] == [True, False] * 6


def test_kto_refuses_a_step_with_a_single_prompt():
    row = {"prompt_ids": [0], "chosen_ids": [1], "rejected_ids": [2]}
    with pytest.raises(DataError, match="all 2 pairs of an optimizer step have the same prompt"):
        trl_data.kto_rows([row, row], pairs_per_step=2)
