"""The forward that TRL's trainers call while they train: rows packed, labelled positions only through the LM head.

TRL's own, on a CPU, puts every position through layers and LM head, padding included, and each prompt once for every
answer. SFT, the DPO family and KTO ask for logprobs of labels (`fused_lm_head=True`), a reward model for the logit of
each row's last token. ORPO wants the whole logits and keeps the model's own forward.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl.trainer.utils import FusedCausalLMOutput

from align.attention import can_pack
from align.forward import Batch, Scorer, head_of, scatter
from align.packing import last_hidden
from align.trainers.trl_data import IGNORED


def score_packed(model: Any) -> None:
    """Put our forward over the one that TRL gave a causal LM; a model that it gave none is left alone."""
    given = model.__dict__.get("forward")
    if given is None:
        return

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against the signature
    def forward(self: Any, *args: Any, **options: Any) -> Any:
        batch = _labelled(self, **options) if options.get("fused_lm_head") and not args else None
        if batch is None:
            return given(*args, **options)
        logprobs, entropies = Scorer(self, 1.0)(batch)
        mask = options["labels"][:, 1:] != IGNORED
        return FusedCausalLMOutput(
            log_probs=scatter(logprobs[batch.completion_mask], mask),
            entropy=scatter(entropies[batch.completion_mask], mask),
            label_mask=mask,
            # Read by TRL for metrics of its own that we drop (NAMES in align/trainers/trl_watch.py).
            mean_logits=torch.full(mask.shape, torch.nan, device=mask.device),
            is_top1=torch.zeros_like(mask),
        )

    model.forward = types.MethodType(forward, model)


def _labelled(model: Any, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> Batch | None:
    """The rows of one of TRL's batches: a completion is what is labelled, its prompt what stands before. None for what
    does not read as such rows, and for a head that is spread over processes: both are TRL's to score.
    """
    mask, labelled = attention_mask.bool(), labels != IGNORED
    places = torch.arange(mask.shape[1], device=mask.device)
    lengths, counts = mask.sum(-1, keepdim=True), labelled.sum(-1, keepdim=True)
    starts = lengths - counts
    rows = (mask == (places < lengths)) & (labelled == ((places >= starts) & (places < lengths)))
    weight = head_of(model)[0].weight
    spread = isinstance(weight, DTensor) or hasattr(weight, "ds_id")  # FSDP2, ZeRO-3
    if spread or not (rows.all() and starts.min() >= 1 and counts.min() >= 1):
        return None
    return Batch(input_ids, mask, starts.squeeze(-1), places[: int(counts.max())] < counts)


def rate_packed(model: Any) -> None:
    """Put our forward over that of a sequence classifier: logits of each row's last token, [B, 1] as its own."""
    given = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **options: Any) -> Any:
        mask, decoder = options.get("attention_mask"), getattr(self, self.base_model_prefix)
        if args or mask is None or not can_pack(decoder):
            return given(*args, **options)
        rows = [tuple(ids[kept].tolist()) for ids, kept in zip(options["input_ids"], mask.bool(), strict=True)]
        return SequenceClassifierOutputWithPast(logits=self.score(last_hidden(decoder, rows, mask.device)))

    model.forward = types.MethodType(forward, model)
