"""The laws of `conf/algo`: what an algorithm's settings may be, and which of them contradict or silence each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from align import on_policy_laws
from align.refusals import finite, need, one_of, positive

if TYPE_CHECKING:
    from align.schema import Experiment, Optimizer, Preference

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
    center(e.algo.center, "algo.center")
    need(e.model.lora is not None, "model.lora", "none", "a reward model is a LoRA adapter and a head; keep model.lora")


def center(value: float | None, key: str) -> None:
    if value is not None:
        finite(value, key, 0, open_low=True)


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


def best_of_n(e: Experiment) -> None:
    need(
        e.steps <= 10,
        "steps",
        e.steps,
        "algo=best_of_n takes the best of 2^steps answers to each prompt; use at most 10",
    )
    need(
        e.reward.formula.strip() != "none",
        "reward.formula",
        "none",
        "algo=best_of_n chooses by reward; pick one, e.g. reward=learned, reward=verifier or reward=gold",
    )


def tempered(e: Experiment) -> None:
    temperatures, top_ps, key = e.algo.temperatures, e.algo.top_ps, "algo.temperatures"
    for temperature in temperatures:
        finite(temperature, key, 0, 10, open_low=True)
    if top_ps is not None:
        _nuclei(top_ps, len(temperatures))
    levels = list(zip(temperatures, top_ps or [1.0] * len(temperatures), strict=True))
    need(
        len(levels) >= 2 and temperatures[0] == 1 and len({*levels}) == len(levels),
        key,
        temperatures,
        "must begin with 1, where every arm begins, and go on with others, each once (with its algo.top_ps)",
    )
    last = len(temperatures) - 1
    need(e.steps == last, "steps", e.steps, f"step s samples at algo.temperatures[s], so there are {last}; use {last}")
    need(e.probe.every == 1, "probe.every", e.probe.every, "must be 1: every temperature is a probe")


def _nuclei(top_ps: list[float], steps: int) -> None:
    key = "algo.top_ps"
    need(0 < len(top_ps) == steps, key, top_ps, f"must be as many as algo.temperatures, {steps}; null cuts nothing off")
    for top_p in top_ps:
        finite(top_p, key, 0, 1, open_low=True)
    need(top_ps[0] == 1, key, top_ps, "must begin with 1, where every arm begins")
    need(min(top_ps) < 1, key, top_ps, "cuts nothing off and has no effect; use null")


UNTRAINED = ("best_of_n", "tempered")  # baselines: they have no optimizer
LAWS = {
    "tempered": tempered,
    "on_policy": on_policy_laws.enforce,
    "best_of_n": best_of_n,
    "preference": preference,
    "sft": sft,
    "reward": reward_training,
}
