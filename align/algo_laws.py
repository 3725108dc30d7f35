"""The laws of `conf/algo`: what an algorithm's settings may be, and which of them contradict or silence each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from align.refusals import finite, need, one_of, positive

if TYPE_CHECKING:
    from align.schema import Experiment, Kl, OnPolicy, Optimizer, Preference, Ratio

ADVANTAGES = ("group_normalized", "group_centered", "leave_one_out")
ESTIMATORS = ("k1", "k2", "k3")
RATIO_LEVELS = ("token", "sequence_mean", "sequence_sum")
AGGREGATES = ("token_mean", "sequence_mean", "sequence_sum", "constant")
TRUNCATIONS = ("keep", "mask", "penalise")
SCHEDULES = ("constant", "linear", "cosine")
LOSSES = ("dpo", "ipo", "cdpo", "rdpo", "ldpo", "simpo", "orpo", "kto")
LOSS_KNOBS = {
    "label_smoothing": ("cdpo",),
    "length_alpha": ("rdpo",),
    "ld_alpha": ("ldpo",),
    "gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}


def optimizer(o: Optimizer, key: str, steps: int) -> None:
    finite(o.lr, f"{key}.lr", 0, 1, open_low=True)
    need(
        len(o.betas) == 2 and all(0 <= b < 1 for b in o.betas),
        f"{key}.betas",
        o.betas,
        "must be two numbers in [0, 1), e.g. [0.9,0.999]",
    )
    finite(o.eps, f"{key}.eps", 0, 1, open_low=True)
    finite(o.weight_decay, f"{key}.weight_decay", 0, 10)
    finite(o.max_grad_norm, f"{key}.max_grad_norm", 0, open_low=True)
    one_of(o.schedule, SCHEDULES, f"{key}.schedule")
    need(
        0 <= o.warmup_steps < steps,
        f"{key}.warmup_steps",
        o.warmup_steps,
        f"must be >= 0 and below the number of steps, {steps}: otherwise the learning rate never reaches its value",
    )


def pairs(per_step: int, micro_batch: int, key: str, name: str = "pairs_per_step") -> None:
    positive(per_step, f"{key}.{name}")
    positive(micro_batch, f"{key}.micro_batch")
    need(
        per_step % micro_batch == 0,
        f"{key}.{name}",
        per_step,
        f"must be a multiple of {key}.micro_batch={micro_batch}, so that every optimizer step sees the same amount",
    )


def sft(e: Experiment) -> None:
    pairs(e.algo.examples_per_step, e.algo.micro_batch, "algo", "examples_per_step")


def reward_training(e: Experiment) -> None:
    pairs(e.algo.pairs_per_step, e.algo.micro_batch, "algo")
    need(e.algo.center is None or e.algo.center > 0, "algo.center", e.algo.center, "must be > 0, or null for off")
    need(e.model.lora is not None, "model.lora", "none", "a reward model is a LoRA adapter and a head; keep model.lora")


def preference(e: Experiment) -> None:
    a: Preference = e.algo
    one_of(a.loss, LOSSES, "algo.loss")
    finite(a.beta, "algo.beta", 0, open_low=True)
    pairs(a.pairs_per_step, a.micro_batch, "algo")
    for knob, losses in LOSS_KNOBS.items():
        value = getattr(a, knob)
        if a.loss in losses:
            need(value is not None, f"algo.{knob}", value, f"algo.loss={a.loss} needs a number here")
        else:
            need(
                value is None,
                f"algo.{knob}",
                value,
                f"has no effect with algo.loss={a.loss}; it belongs to algo={losses[0]}",
            )
    for knob, low, high in (
        ("label_smoothing", 0, 0.499),
        ("ld_alpha", 0, 1),
        ("gamma", 0, math.inf),
        ("length_alpha", -10, 10),
        ("desirable_weight", 0, math.inf),
        ("undesirable_weight", 0, math.inf),
    ):
        if getattr(a, knob) is not None:
            finite(getattr(a, knob), f"algo.{knob}", low, high)
    need(
        a.loss != "kto" or a.micro_batch >= 2,
        "algo.micro_batch",
        a.micro_batch,
        "algo=kto estimates its KL from mismatched answers within a micro-batch and needs >= 2",
    )


def on_policy(e: Experiment) -> None:
    a: OnPolicy = e.algo
    for key in ("prompts_per_step", "epochs", "minibatches", "micro_batch"):
        positive(getattr(a, key), f"algo.{key}")
    one_of(a.advantage, ADVANTAGES, "algo.advantage")
    need(
        a.group_size >= 2,
        "algo.group_size",
        a.group_size,
        f"algo.advantage={a.advantage} compares completions of one prompt and needs >= 2",
    )
    batch = a.prompts_per_step * a.group_size
    need(
        batch % a.minibatches == 0,
        "algo.minibatches",
        a.minibatches,
        f"must divide prompts_per_step x group_size = {batch}",
    )
    need(
        batch // a.minibatches % a.micro_batch == 0 or a.micro_batch >= batch // a.minibatches,
        "algo.micro_batch",
        a.micro_batch,
        f"must divide the minibatch of {batch // a.minibatches} completions",
    )
    _kl(a.kl)
    _ratio(a.ratio, updates=a.epochs * a.minibatches)
    one_of(a.aggregate, AGGREGATES, "algo.aggregate")
    need(
        a.ratio.level == "token" or a.aggregate == "sequence_mean",
        "algo.aggregate",
        a.aggregate,
        f"algo.ratio.level={a.ratio.level} has one ratio per sequence; use algo.aggregate=sequence_mean",
    )
    _truncation(a)
    need(
        e.reward.formula.strip() != "none",
        "reward.formula",
        "none",
        f"algo={a.name} needs a reward: reward=learned "
        "(trained on the data's pairs), reward=verifier, or your own: reward.formula=package.module:function",
    )


def _kl(kl: Kl) -> None:
    one_of(kl.where, ("none", "reward", "loss"), "algo.kl.where")
    if kl.where == "none":
        for key in ("estimator", "coef"):
            need(
                getattr(kl, key) is None,
                f"algo.kl.{key}",
                getattr(kl, key),
                "has no effect with algo.kl.where=none; set it to null, or algo.kl.where to reward or loss",
            )
        return
    one_of(kl.estimator, ESTIMATORS, "algo.kl.estimator")
    need(
        (kl.where, kl.estimator) != ("loss", "k1"),
        "algo.kl.estimator",
        kl.estimator,
        "as a loss its expected gradient is 0, it would only add noise; use k2 or k3, or algo.kl.where=reward",
    )
    need(kl.coef is not None, "algo.kl.coef", kl.coef, f"algo.kl.where={kl.where} needs a number here")
    finite(kl.coef or 0.0, "algo.kl.coef", 0, open_low=True)


def _ratio(ratio: Ratio, updates: int) -> None:
    one_of(ratio.level, RATIO_LEVELS, "algo.ratio.level")
    for key in ("clip_low", "clip_high"):
        value = getattr(ratio, key)
        if value is None:
            continue
        finite(value, f"algo.ratio.{key}", 0, open_low=True)
        need(
            updates > 1,
            f"algo.ratio.{key}",
            value,
            "can never act: with one update per rollout the ratio is exactly "
            "1. Set algo.epochs or algo.minibatches above 1, or leave the clip null",
        )
    need(
        (ratio.clip_low is None) == (ratio.clip_high is None),
        "algo.ratio.clip_high",
        ratio.clip_high,
        f"set both clips or none (algo.ratio.clip_low={ratio.clip_low})",
    )
    need(
        ratio.clip_low is None or ratio.clip_low < 1,
        "algo.ratio.clip_low",
        ratio.clip_low,
        "must be < 1: a ratio is never negative",
    )


def _truncation(a: OnPolicy) -> None:
    t = a.truncation
    one_of(t.mode, TRUNCATIONS, "algo.truncation.mode")
    if t.mode == "penalise":
        need(t.penalty is not None, "algo.truncation.penalty", t.penalty, "needs a number with mode=penalise")
        finite(t.penalty or 0.0, "algo.truncation.penalty", 0, open_low=True)
    else:
        need(
            t.penalty is None,
            "algo.truncation.penalty",
            t.penalty,
            f"has no effect with algo.truncation.mode={t.mode}; use mode=penalise",
        )


LAWS = {"on_policy": on_policy, "preference": preference, "sft": sft, "reward": reward_training}
