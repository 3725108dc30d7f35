"""Losses on preference pairs: what the DPO family, KTO and reward models minimise, as pure functions of tensors.

A sequence's logprob is the sum over its completion tokens, EOS included, prompt excluded. A log-ratio is that sum under
the policy minus that under the reference; the losses with a reference see nothing else of the two models. Lengths count
completion tokens. Every loss returns one value per pair (KTO: per example); the step's loss is their mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation (arXiv:2305.18290, eq. 7).

        L = -log sigmoid(beta (h_w - h_l))

    chosen, rejected [B] log-ratios h -> losses [B]
    """
    _same_shape(chosen, rejected)
    return -logsigmoid(beta * (chosen - rejected))


def cdpo(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Conservative DPO: the label is wrong with probability e (ericmitchell.ai/cdpo.pdf, eq. 3; label smoothing).

        L = -(1 - e) log sigmoid(beta (h_w - h_l)) - e log sigmoid(-beta (h_w - h_l))

    Its minimum is finite, at sigmoid(beta (h_w - h_l)) = 1 - e, so a pair is pushed apart only so far.

    chosen, rejected [B] log-ratios h -> losses [B]
    """
    assert 0 <= label_smoothing < 0.5, f"label_smoothing is a flip probability below one half, got {label_smoothing}"
    margin = beta * (chosen - rejected)
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def ipo(chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, beta: float) -> Tensor:
    """Identity preference optimisation (arXiv:2310.12036, eq. 17), averaged over tokens.

        L = (h_w / |y_w| - h_l / |y_l| - 1 / (2 beta))^2

    The paper writes sums. With sums the fixed target 1 / (2 beta) asks less per token of a long answer than of a short
    one, and the loss grows with the square of the length. TRL divides by length, which the paper's authors
    confirmed (comment in its DPO trainer). beta is therefore per token: not comparable with DPO's.

    chosen, rejected [B] log-ratios h, lengths [B] tokens -> losses [B]
    """
    _same_shape(chosen, rejected, chosen_lengths, rejected_lengths)
    return (chosen / chosen_lengths - rejected / rejected_lengths - 1 / (2 * beta)) ** 2


def rdpo(
    chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, beta: float, length_alpha: float
) -> Tensor:
    """R-DPO, DPO with a length margin (arXiv:2403.19159).

        L = -log sigmoid(beta (h_w - h_l) + alpha (|y_w| - |y_l|))

    The implied reward is beta h + alpha |y|: part of a long winner's win is put down to its length, which leaves less
    of it for the policy to learn. alpha is in log-odds per token.

    chosen, rejected [B] log-ratios h, lengths [B] tokens -> losses [B]
    """
    _same_shape(chosen, rejected, chosen_lengths, rejected_lengths)
    return -logsigmoid(beta * (chosen - rejected) + length_alpha * (chosen_lengths - rejected_lengths))


def ldpo_logprobs(token_logprobs: Tensor, mask: Tensor, shared: Tensor, ld_alpha: float) -> Tensor:
    """LD-DPO's logprob of a sequence (arXiv:2409.06411): what lies beyond the shorter answer counts less.

        log p'(y) = sum_{t <= l} log p_t + alpha sum_{t > l} log p_t        l = min(|y_w|, |y_l|)

    LD-DPO is `dpo` on the log-ratios of these, taken of policy and reference alike. alpha = 1 is DPO.

    token_logprobs [B, T], mask [B, T] bool, shared [B] tokens (the l of each sequence's pair) -> [B]
    """
    _same_shape(token_logprobs, mask)
    position = mask.long().cumsum(-1)  # 1 for the first counted token
    weight = torch.where(position <= shared[:, None], 1.0, ld_alpha) * mask
    return (token_logprobs * weight).sum(-1)


def simpo(
    chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, beta: float, gamma: float
) -> Tensor:
    """SimPO: the mean logprob is the reward, no reference (arXiv:2405.14734, eq. 6).

        L = -log sigmoid(beta / |y_w| log p(y_w) - beta / |y_l| log p(y_l) - gamma)

    chosen, rejected [B] logprobs of the policy (not log-ratios), lengths [B] tokens -> losses [B]
    """
    _same_shape(chosen, rejected, chosen_lengths, rejected_lengths)
    return -logsigmoid(beta * (chosen / chosen_lengths - rejected / rejected_lengths) - gamma)


def orpo(
    chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, chosen_nll: Tensor, beta: float
) -> Tensor:
    """ORPO: imitation of the chosen plus an odds ratio, no reference (arXiv:2403.07691, eq. 6 and 7).

        L = NLL(y_w) - beta log sigmoid(log odds(y_w) - log odds(y_l))
        odds(y) = P / (1 - P),  P = exp(log p(y) / |y|)

    `chosen_nll` is the mean negative logprob per token of what is imitated. The paper means y_w; TRL takes
    prompt and y_w together, pooled over the micro-batch (then one value for all pairs), and so does the authors' code
    unless told not to. beta is the paper's lambda.

    chosen, rejected [B] logprobs of the policy, lengths [B] tokens, chosen_nll [B] or [] -> losses [B]
    """
    _same_shape(chosen, rejected, chosen_lengths, rejected_lengths)
    log_odds_ratio = _log_odds(chosen / chosen_lengths) - _log_odds(rejected / rejected_lengths)
    return chosen_nll - beta * logsigmoid(log_odds_ratio)


def kto(
    log_ratios: Tensor, desirable: Tensor, kl: Tensor, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """Kahneman-Tversky optimisation: single answers, labelled good or bad (arXiv:2402.01306, eq. 8).

        L = w_D (1 - sigmoid(beta (h - z)))   good answers
        L = w_U (1 - sigmoid(beta (z - h)))   bad answers

    z is the reference point, `kto_reference_point` of answers to other prompts; no gradient flows through it.

    log_ratios [B] h, desirable [B] bool, kl [] z -> losses [B], one per example
    """
    _same_shape(log_ratios, desirable)
    gain = beta * (log_ratios - kl.detach())
    good = desirable_weight * (1 - torch.sigmoid(gain))
    bad = undesirable_weight * (1 - torch.sigmoid(-gain))
    return torch.where(desirable, good, bad)


def kto_reference_point(mismatched: Tensor) -> Tensor:
    """KTO's z, the KL of policy and reference estimated on answers that belong to other prompts (arXiv:2402.01306).

        z = max(0, mean h(x_i, y_j))   i != j

    mismatched [B] log-ratios h -> []
    """
    return mismatched.mean().clamp(min=0).detach()


def bradley_terry(chosen_rewards: Tensor, rejected_rewards: Tensor, center: float = 0.0) -> Tensor:
    """A reward model's loss: the preferred answer wins with the odds its reward says (Bradley and Terry, 1952).

        L = -log sigmoid(r_w - r_l) + center (r_w + r_l)^2

    Only differences are identified; `center` pins the level near zero (arXiv:2312.09244).

    chosen_rewards, rejected_rewards [B] -> losses [B]
    """
    _same_shape(chosen_rewards, rejected_rewards)
    return -logsigmoid(chosen_rewards - rejected_rewards) + center * (chosen_rewards + rejected_rewards) ** 2


def accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Fraction of pairs whose chosen answer scores higher, ties counted half.

    At its start a policy equals its reference and every pair ties: that is 0.5, not the 0 that `>` alone would say.

    chosen, rejected [B] scores -> []
    """
    _same_shape(chosen, rejected)
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean()


def _log_odds(mean_logprob: Tensor) -> Tensor:
    """log(P / (1 - P)) from log P < 0 [B] -> [B], without cancellation at either end."""
    near_one = mean_logprob > -math.log(2)
    log_rest = torch.where(near_one, torch.log(-torch.expm1(mean_logprob)), torch.log1p(-torch.exp(mean_logprob)))
    return mean_logprob - log_rest


def _same_shape(*tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    assert len(set(shapes)) == 1, f"shapes differ: {shapes}"
