"""TRL's trainers as we use them: on rows tokenised by us, silent, and with three losses that TRL does not serve.

Importing this module imports TRL, which takes seconds: do it after the config has been checked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when huggingface_hub is imported
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # read when trl.experimental is imported

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from align.halving import Halving
from align.maths import preference
from align.trainers import trl_args
from align.trainers.trl_data import IGNORED, Row, kto_rows
from align.trainers.trl_forward import rate_packed, score_packed

if TYPE_CHECKING:
    from align.schema import Experiment


class _Prepared:
    """Mixed into each trainer: prepared data, no reports to anyone, no update with numbers that are not finite."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        """TRL would report class, model and device; the environment variable alone is too late once hub is imported."""

    def begin_at(self, step: int, rule: str, skipped: Callable[[], None], halving: Halving) -> None:
        """The update to start at, the rule for numbers that are not finite, whom to tell when one is skipped, and
        whether a micro-batch that runs out of memory ends the run or raises TooLarge."""
        self._begin, self._rule, self._skipped, self._halving = step, rule, skipped, halving

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Trainer's own resume reads a checkpoint folder of its own; ours only needs the counter to start elsewhere."""
        epochs = super()._init_training_state(*args, **kwargs)  # type: ignore[misc]
        self.state.global_step = self._begin  # type: ignore[attr-defined]
        return epochs

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._halving.trying(self.args.per_device_train_batch_size):  # type: ignore[attr-defined]
            loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if self._rule == "stop" and self.accelerator.num_processes == 1:  # type: ignore[attr-defined]
            self._need_finite("loss", loss)  # of several processes all see it in the gradient, together
        return loss

    def log(self, *args: Any, **kwargs: Any) -> None:
        super().log(*args, **kwargs)  # type: ignore[misc]
        self._tr_loss.zero_()  # Trainer takes it off itself, which leaves a NaN in every later row

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]
        if self._rule == "stop":
            self._need_finite("gradient norm", norm)
        elif not math.isfinite(norm):  # of the summed gradient: the same on every process
            for parameter in model.parameters():
                parameter.grad = None  # AdamW passes over what has no gradient
            self._skipped()
        return norm

    def _need_finite(self, what: str, value: Any) -> None:
        if not math.isfinite(value):
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            raise FloatingPointError(f"step {step}: the {what} is {float(value)}; nothing was updated with it")


class Dpo(_Prepared, DPOTrainer):
    """dpo, ipo and ldpo, by TRL's own loss."""


class Kto(_Prepared, KTOTrainer):
    """kto, by TRL's own loss; the rows bring their KL completions."""


class Sft(_Prepared, SFTTrainer):
    """Cross-entropy of the response, averaged over the tokens of the whole optimizer step."""


class RewardModel(_Prepared, RewardTrainer):
    """Bradley-Terry on a scalar head."""


class Orpo(_Prepared, ORPOTrainer):
    """orpo, by TRL's own loss: the NLL covers prompt and chosen and is a mean over the micro-batch's tokens.

    Its constructor maps three functions over the data. Two leave rows without `chosen` and `rejected` texts alone; the
    third is this one, which only gives our ids the names that its collator expects.
    """

    def tokenize_row(self, feature: Row, model: Any = None) -> Row:
        prompt = feature["prompt_ids"]
        row: Row = {}
        for side in ("chosen", "rejected"):
            answer = feature[f"{side}_ids"]
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_attention_mask"] = [1] * (len(prompt) + len(answer))
            row[f"{side}_labels"] = [IGNORED] * len(prompt) + answer
        return row


class Pairs(NamedTuple):
    """What a pair loss may look at, each [B]."""

    chosen: Tensor  # summed logprob under the policy
    rejected: Tensor
    reference_chosen: Tensor  # summed logprob under the reference; zeros for a loss that has none
    reference_rejected: Tensor
    chosen_lengths: Tensor  # completion tokens
    rejected_lengths: Tensor

    @property
    def log_ratios(self) -> tuple[Tensor, Tensor]:
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        return self.chosen_lengths, self.rejected_lengths


# The losses that TRL does not serve: pairs and the algorithm's settings -> losses [B].
OWN_LOSSES: dict[str, Callable[[Pairs, Any], Tensor]] = {
    "cdpo": lambda p, algo: preference.cdpo(*p.log_ratios, algo.beta, algo.label_smoothing),
    "rdpo": lambda p, algo: preference.rdpo(*p.log_ratios, *p.lengths, algo.beta, algo.length_alpha),
    "simpo": lambda p, algo: preference.simpo(p.chosen, p.rejected, *p.lengths, algo.beta, algo.gamma),
}
REFERENCE_FREE = ("simpo", "orpo")


class PairLoss(Dpo):
    """DPOTrainer with a loss of ours in place of its own. Logprobs of policy and reference are computed as TRL does."""

    def __init__(self, *args: Any, algo: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.algo = algo

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Tensor:
        assert not return_outputs, "evaluation is the probe's business"
        mask = inputs["completion_mask"]
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["input_ids"].masked_fill(mask == 0, IGNORED),
            use_cache=False,
            fused_lm_head=True,  # logprobs and entropies without the full logits, 0 where the label is ignored
        )
        chosen, rejected = outputs.log_probs.sum(1).chunk(2)  # the collator stacks all chosen, then all rejected
        reference = self._reference_logprobs(inputs, chosen)
        pairs = Pairs(chosen, rejected, *reference, *mask.sum(1).chunk(2))
        self._record(pairs, outputs.entropy.detach().sum() / mask.sum())
        return OWN_LOSSES[self.algo.loss](pairs, self.algo).mean()

    def _reference_logprobs(self, inputs: dict[str, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        if self.algo.loss in REFERENCE_FREE:
            return torch.zeros_like(like), torch.zeros_like(like)
        return self.compute_ref_log_probs(self.ref_model or self.model, inputs)

    @torch.no_grad()
    def _record(self, pairs: Pairs, entropy: Tensor) -> None:
        """The batch's metrics under the names that TRL's own losses use (align/trainers/trl_watch.py reads those)."""
        if self.algo.loss in REFERENCE_FREE:
            chosen, rejected = pairs.chosen / pairs.chosen_lengths, pairs.rejected / pairs.rejected_lengths
        else:
            chosen, rejected = pairs.log_ratios
        values = {
            "rewards/chosen": self.beta * chosen.mean(),
            "rewards/rejected": self.beta * rejected.mean(),
            "rewards/margins": self.beta * (chosen - rejected).mean(),
            "rewards/accuracies": preference.accuracy(chosen, rejected),
            "entropy": entropy,
        }
        for name, value in values.items():
            self._metrics["train"][name].append(self.accelerator.gather(value).mean().item())


def base_of(model: Any) -> Any:
    """The transformers model, its adapter (if any) in place: TRL patches the forward of this one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


class Kind(NamedTuple):
    """How one kind of run is built."""

    trainer: type[Trainer]
    config: type
    settings: Callable[..., dict[str, Any]]  # experiment, folder, processes -> arguments of `config`
    extra: Callable[[Experiment, Any], dict[str, Any]] = lambda experiment, policy: {}  # further trainer arguments
    layout: Callable[[list[Row], int], list[Row]] = lambda rows, pairs_per_step: rows
    halves: bool = True  # whether a step's numbers are the same with smaller micro-batches
    faster: Callable[[Any], None] = score_packed  # gives a base our forward, once TRL has given it its own


def _reference(experiment: Experiment, policy: Any) -> dict[str, Any]:
    """Given a reference, TRL does not make its own: it would copy the adapter, or read the base from disk again."""
    return {"ref_model": base_of(policy.reference)}


def _reference_and_algo(experiment: Experiment, policy: Any) -> dict[str, Any]:
    return {**_reference(experiment, policy), "algo": experiment.algo}


_DPO = Kind(Dpo, DPOConfig, trl_args.dpo_args, _reference)
_OWN = Kind(PairLoss, DPOConfig, trl_args.dpo_args, _reference_and_algo)
PREFERENCE = {
    "dpo": _DPO,
    "ipo": _DPO,
    "ldpo": _DPO,
    "cdpo": _OWN,
    "rdpo": _OWN,
    "simpo": _OWN,
    "kto": Kind(Kto, KTOConfig, trl_args.kto_args, _reference, kto_rows, halves=False),  # its reference point is a mean
    "orpo": Kind(Orpo, ORPOConfig, trl_args.orpo_args, halves=False),  # so is its NLL, over the micro-batch's tokens
}
SFT = Kind(Sft, SFTConfig, trl_args.sft_args)
REWARD = Kind(RewardModel, RewardConfig, trl_args.reward_args, faster=rate_packed)
