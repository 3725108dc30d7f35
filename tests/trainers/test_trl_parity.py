"""TRL's losses against align/maths/preference.py, on logprobs computed here the plain way: one unpadded sequence at a
time, full logits, log_softmax. The batch goes through the trainer's own collator and its own compute_loss.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from align.maths import preference
from align.trainers import trl_data, trl_losses
from align.trainers.trl_runs import build_trainer
from tests.trainers import tiny

ROWS = trl_data.pair_rows(tiny.TOKENIZER, tiny.PAIRS[:4])
LOSS_ERROR = 1e-5  # relative; float32
COSINE = 1 - 1e-6


def token_logprobs(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Logprobs of an answer's tokens [T]."""
    ids = torch.tensor([prompt + answer])
    logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


def summed(model: Any, side: str, rows: list[dict] = ROWS, prompts: str = "prompt_ids") -> Tensor:
    return torch.stack([token_logprobs(model, row[prompts], row[side]).sum() for row in rows])


def log_ratios(policy: Any, side: str) -> Tensor:
    return summed(policy.model, side) - summed(policy.reference, side)


def lengths(side: str) -> Tensor:
    return torch.tensor([float(len(row[side])) for row in ROWS])


def both(of) -> tuple[Tensor, Tensor]:
    return of("chosen_ids"), of("rejected_ids")


def dpo(policy, algo):
    return preference.dpo(*both(lambda side: log_ratios(policy, side)), algo.beta).mean()


def ipo(policy, algo):
    return preference.ipo(*both(lambda side: log_ratios(policy, side)), *both(lengths), algo.beta).mean()


def cdpo(policy, algo):
    ratios = both(lambda side: log_ratios(policy, side))
    return preference.cdpo(*ratios, algo.beta, algo.label_smoothing).mean()


def rdpo(policy, algo):
    ratios = both(lambda side: log_ratios(policy, side))
    return preference.rdpo(*ratios, *both(lengths), algo.beta, algo.length_alpha).mean()


def ldpo(policy, algo):
    shared = torch.minimum(*both(lengths))

    def weighted(model, side):
        rows = [token_logprobs(model, row["prompt_ids"], row[side]) for row in ROWS]
        width = max(len(row) for row in rows)
        padded = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
        mask = torch.arange(width) < lengths(side)[:, None]
        return preference.ldpo_logprobs(padded, mask, shared, algo.ld_alpha)

    ratios = both(lambda side: weighted(policy.model, side) - weighted(policy.reference, side))
    return preference.dpo(*ratios, algo.beta).mean()


def simpo(policy, algo):
    logprobs = both(lambda side: summed(policy.model, side))
    return preference.simpo(*logprobs, *both(lengths), algo.beta, algo.gamma).mean()


def orpo(policy, algo):
    logprobs = both(lambda side: summed(policy.model, side))
    whole = [row["prompt_ids"] + row["chosen_ids"] for row in ROWS]  # the first token is not predicted from anything
    nll = -torch.cat([token_logprobs(policy.model, ids[:1], ids[1:]) for ids in whole]).mean()
    return preference.orpo(*logprobs, *both(lengths), nll, algo.beta).mean()


def kto(policy, algo):
    labels, ratios, point = kto_inputs(policy)
    return preference.kto(ratios, labels, point, algo.beta, algo.desirable_weight, algo.undesirable_weight).mean()


def kto_inputs(policy):
    rows = trl_data.kto_rows(ROWS, len(ROWS))
    ratios, mismatched = (
        summed(policy.model, key, rows) - summed(policy.reference, key, rows)
        for key in ("completion_ids", "KL_completion_ids")
    )
    labels = torch.tensor([row["label"] for row in rows])
    return labels, ratios, preference.kto_reference_point(mismatched)


PLAIN = {"dpo": dpo, "ipo": ipo, "cdpo": cdpo, "rdpo": rdpo, "ldpo": ldpo, "simpo": simpo, "orpo": orpo, "kto": kto}


def trainer_for(kind: trl_losses.Kind, experiment: Any, policy: Any, rows: list[dict], folder: Path) -> Any:
    trainer = build_trainer(kind, experiment, policy, rows, folder)
    trainer.model.train()
    return trainer


def trl_loss(trainer: Any) -> Tensor:
    """The trainer's own loss on its whole data as one batch."""
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    return trainer.compute_loss(trainer.model, trainer.data_collator(rows))


def gradient(loss: Tensor, model: torch.nn.Module) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def assert_parity(theirs: Tensor, ours: Tensor, model: torch.nn.Module, label: str) -> None:
    error = abs(theirs.item() - ours.item()) / abs(ours.item())
    cosine = torch.cosine_similarity(gradient(theirs, model).double(), gradient(ours, model).double(), dim=0).item()
    print(f"{label}: relative error {error:.1e}, 1 - cosine {1 - cosine:.1e}")
    assert error <= LOSS_ERROR
    assert cosine > COSINE


def preference_trainer(loss: str, policy: Any, folder: Path) -> tuple[Any, Any]:
    experiment = tiny.preference(loss, pairs_per_step=4, micro_batch=4)
    kind = trl_losses.PREFERENCE[loss]
    return trainer_for(kind, experiment, policy, kind.layout(ROWS, 4), folder), experiment.algo


@pytest.mark.parametrize("loss", PLAIN)
def test_the_trainers_loss_and_gradient_are_those_of_the_equation(loss, tmp_path):
    policy = tiny.lora_policy(moved=True)
    trainer, algo = preference_trainer(loss, policy, tmp_path)
    assert_parity(trl_loss(trainer), PLAIN[loss](policy, algo), policy.model, loss)


def test_ktos_reference_point_comes_from_the_mismatched_answers_and_is_clamped_at_zero(tmp_path):
    policy = tiny.lora_policy(moved=True)
    points = []
    for sign in (1, -1):  # a step against the noise turns the mean log-ratio around
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.data *= sign
        trainer, algo = preference_trainer("kto", policy, tmp_path)
        assert_parity(trl_loss(trainer), kto(policy, algo), policy.model, "kto")
        points.append(kto_inputs(policy)[2].item())
    assert min(points) == 0 < max(points), points


def test_sft_is_the_cross_entropy_of_the_responses_tokens(tmp_path):
    policy = tiny.lora_policy(moved=True)
    rows = trl_data.demonstration_rows(tiny.TOKENIZER, tiny.DEMONSTRATIONS[:4])
    trainer = trainer_for(trl_losses.SFT, tiny.sft(micro_batch=4), policy, rows, tmp_path)
    tokens = torch.cat([token_logprobs(policy.model, row["prompt_ids"], row["chosen_ids"]) for row in ROWS])
    assert_parity(trl_loss(trainer), -tokens.mean(), policy.model, "sft")


@pytest.mark.parametrize("center", [None, 0.1])
def test_a_reward_models_loss_is_bradley_terry(center, tmp_path):
    scorer = tiny.reward_model(moved=True)
    rows = trl_data.reward_rows(tiny.TOKENIZER, tiny.PAIRS[:4])
    trainer = trainer_for(trl_losses.REWARD, tiny.reward(micro_batch=4, center=center), scorer, rows, tmp_path)

    def rewards(side: str) -> Tensor:
        return torch.cat([scorer.model(torch.tensor([row[side]])).logits.squeeze(-1) for row in rows])

    ours = preference.bradley_terry(*both(rewards), center or 0.0).mean()
    assert_parity(trl_loss(trainer), ours, scorer.model, f"reward, center {center}")


def uniform_policy() -> SimpleNamespace:
    """Every token has probability 1 / V, whatever comes before: logprobs can be written down."""
    policy = tiny.lora_policy()
    for model in (policy.model, policy.reference):
        embedding = model.get_input_embeddings().weight  # tied to the output
        embedding.data = torch.zeros_like(embedding)
    return policy


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        ("cdpo", math.log(2)),
        ("simpo", math.log(1 + math.exp(0.5))),  # equal mean logprobs leave -gamma = -0.5
        ("orpo", math.log(261) + 0.2 * math.log(2)),  # equal odds, V = 256 bytes + 5 special tokens
    ],
)
def test_losses_of_a_uniform_model_by_hand(loss, by_hand, tmp_path):
    trainer, _ = preference_trainer(loss, uniform_policy(), tmp_path)
    assert trl_loss(trainer).item() == pytest.approx(by_hand, rel=1e-6)


def test_rdpo_at_its_reference_by_hand(tmp_path):
    # bytes + EOS: 10 and 4, 2 and 15, 13 and 3, 7 and 12; alpha 0.02 makes the margins 0.12, -0.26, 0.2, -0.1
    assert [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in ROWS] == [(10, 4), (2, 15), (13, 3), (7, 12)]
    by_hand = sum(math.log(1 + math.exp(-margin)) for margin in (0.12, -0.26, 0.2, -0.1)) / 4
    trainer, _ = preference_trainer("rdpo", tiny.lora_policy(), tmp_path)
    assert trl_loss(trainer).item() == pytest.approx(by_hand, rel=1e-6)


def test_the_reference_is_the_policy_with_its_adapter_off_to_the_last_bit(tmp_path):
    policy = tiny.lora_policy(moved=True)
    trainer, _ = preference_trainer("dpo", policy, tmp_path)
    inputs = trainer.data_collator(ROWS)
    reference = trainer.compute_ref_log_probs(trainer.ref_model, inputs)
    with policy.model.disable_adapter():
        off = trainer.compute_ref_log_probs(trainer.model, inputs)
    assert torch.equal(torch.cat(reference), torch.cat(off))
    assert list(policy.model.peft_config) == ["default"], "TRL made a copy of the adapter"


def test_simpo_never_runs_its_reference(tmp_path):
    policy = tiny.lora_policy()
    trainer, _ = preference_trainer("simpo", policy, tmp_path)
    trainer.ref_model.forward = lambda *args, **kwargs: pytest.fail("the reference was run")
    trl_loss(trainer)


@pytest.mark.parametrize("loss", PLAIN)
def test_pads_never_enter_the_loss(loss, tmp_path):
    trainer, _ = preference_trainer(loss, tiny.lora_policy(moved=True), tmp_path)
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    clean, dirty = trainer.data_collator(rows), trainer.data_collator(rows)
    changed = 0
    for key, mask in [(k, k.replace("input_ids", "attention_mask")) for k in dirty if k.endswith("input_ids")]:
        pads = dirty[mask] == 0
        dirty[key][pads] = tiny.TOKENIZER.eos_token_id
        changed += int(pads.sum())
    assert changed > 0
    assert_close(trainer.compute_loss(trainer.model, dirty), trainer.compute_loss(trainer.model, clean))
