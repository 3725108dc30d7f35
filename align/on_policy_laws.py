"""The laws of an on-policy algorithm: the axes, and which of their values contradict or silence each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from align.refusals import finite, need, one_of, positive

if TYPE_CHECKING:
    from align.schema import Experiment, Kl, OnPolicy

GROUP_ADVANTAGES = ("group_normalized", "group_centered", "leave_one_out")
ADVANTAGES = (*GROUP_ADVANTAGES, "gae", "reward")
ESTIMATORS = ("k1", "k2", "k3")
MUTATING_INITS = ("pissa", "olora")  # of an adapter: they rewrite the base under it
RATIO_LEVELS = ("token", "sequence_mean", "sequence_sum")
AGGREGATES = ("token_mean", "sequence_mean", "sequence_sum", "constant")
TRUNCATIONS = ("keep", "mask", "penalise", "replace", "ramp")
NORMALISATIONS = ("none", "start", "running")
CRITICS = ("adapter", "head")
CRITIC_INITS = ("zero", "random", "reward")


def enforce(e: Experiment) -> None:
    a: OnPolicy = e.algo
    _batch(a)
    _advantage(a)
    _critic(e)
    _kl(a.kl, a.prompts_per_step * a.group_size)
    _ratio(a)
    _rewards(e)
    _truncation(e)


def _batch(a: OnPolicy) -> None:
    for key in (
        "prompts_per_step",
        "group_size",
        "max_draws",
        "epochs",
        "minibatches",
        "micro_batch",
        "micro_batch_tokens",
    ):
        if getattr(a, key) is not None:
            positive(getattr(a, key), f"algo.{key}")
    one_of(a.advantage, ADVANTAGES, "algo.advantage")
    grouped = a.advantage in GROUP_ADVANTAGES
    need(
        a.group_size >= 2 or not grouped,
        "algo.group_size",
        a.group_size,
        f"algo.advantage={a.advantage} compares completions of one prompt and needs >= 2",
    )
    need(
        a.max_draws == 1 or grouped,
        "algo.max_draws",
        a.max_draws,
        f"replaces groups whose rewards are all equal, which algo.advantage={a.advantage} does not compare; use 1",
    )
    batch = a.prompts_per_step * a.group_size
    need(
        batch % a.minibatches == 0,
        "algo.minibatches",
        a.minibatches,
        f"must divide prompts_per_step x group_size = {batch}",
    )
    need(
        a.micro_batch is None or batch // a.minibatches % a.micro_batch == 0 or a.micro_batch >= batch // a.minibatches,
        "algo.micro_batch",
        a.micro_batch,
        f"must divide the minibatch of {batch // a.minibatches} completions; or null: micro_batch_tokens decides",
    )


def _advantage(a: OnPolicy) -> None:
    for name, part in (("gae", a.gae), ("critic", a.critic)):
        need(
            (part is not None) == (a.advantage == "gae"),
            f"algo.{name}",
            "none" if part is None else "given",
            f"algo.advantage=gae needs it and the others have no use for it (algo.advantage={a.advantage}); "
            + ("start from algo=ppo" if part is None else f"set algo.{name}=none")
            + ", or change algo.advantage",
        )
    if a.gae is None:
        return
    finite(a.gae.gamma, "algo.gae.gamma", 0, 1)
    finite(a.gae.lam, "algo.gae.lam", 0, 1)
    if a.gae.critic_lam is not None:
        finite(a.gae.critic_lam, "algo.gae.critic_lam", 0, 1)


def _critic(e: Experiment) -> None:
    c = e.algo.critic
    if c is None:
        return
    one_of(c.kind, CRITICS, "algo.critic.kind")
    one_of(c.init, CRITIC_INITS, "algo.critic.init")
    finite(c.coef, "algo.critic.coef", 0)
    finite(c.lr, "algo.critic.lr", 0, 1, open_low=True)
    if c.clip is not None:
        finite(c.clip, "algo.critic.clip", 0, open_low=True)
        _acts("algo.critic.clip", c.clip, e.algo)
    need(
        0 <= c.warmup_steps < e.steps,
        "algo.critic.warmup_steps",
        c.warmup_steps,
        f"must be >= 0 and below steps={e.steps}: until then the policy stands still",
    )
    need(
        c.kind == "head" or e.model.lora is not None,
        "algo.critic.kind",
        c.kind,
        "is a LoRA adapter and model.lora is none; use algo.critic.kind=head, or keep model.lora",
    )
    learned = e.reward.learned is not None
    need(
        c.init != "reward" or (c.kind == "adapter" and learned),
        "algo.critic.init",
        c.init,
        "starts from the reward model: it needs reward=learned and algo.critic.kind=adapter",
    )
    need(
        c.init != "reward" or e.algo.scale.normalise == "none",
        "algo.critic.init",
        c.init,
        f"speaks in the reward model's units and algo.scale.normalise={e.algo.scale.normalise} trains in others; add "
        "algo.scale.normalise=none",
    )
    mutating = e.model.lora is not None and e.model.lora.init in MUTATING_INITS
    need(
        c.kind == "head" or not mutating,
        "algo.critic.kind",
        c.kind,
        "shares the base that model.lora.init rewrites; use model.lora.init=default or algo.critic.kind=head",
    )


def _kl(kl: Kl, completions: int) -> None:
    one_of(kl.where, ("none", "reward", "loss"), "algo.kl.where")
    if kl.where == "none":
        for key in ("estimator", "coef", "target_nats_per_sequence", "horizon_completions"):
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
    target, horizon = kl.target_nats_per_sequence, kl.horizon_completions
    need(
        (target is None) == (horizon is None),
        "algo.kl.horizon_completions",
        horizon,
        f"an adaptive coefficient needs both, a fixed one neither (algo.kl.target_nats_per_sequence={target})",
    )
    if target is not None and horizon is not None:
        finite(target, "algo.kl.target_nats_per_sequence", 0, open_low=True)
        need(
            completions <= horizon < math.inf,
            "algo.kl.horizon_completions",
            horizon,
            f"must be at least the completions of a rollout, {completions}: the coefficient moves by at most 0.2 of it",
        )


def _ratio(a: OnPolicy) -> None:
    ratio = a.ratio
    one_of(ratio.level, RATIO_LEVELS, "algo.ratio.level")
    one_of(a.aggregate, AGGREGATES, "algo.aggregate")
    need(
        ratio.level == "token" or (a.advantage in GROUP_ADVANTAGES and not a.whiten.advantages),
        "algo.ratio.level",
        ratio.level,
        "has one advantage per sequence: it goes with the group advantages, not whitened (that counts tokens); use "
        "algo.ratio.level=token",
    )
    need(
        ratio.level == "token" or a.aggregate == "sequence_mean",
        "algo.aggregate",
        a.aggregate,
        f"algo.ratio.level={ratio.level} has one ratio per sequence; use algo.aggregate=sequence_mean",
    )
    for key in ("clip_low", "clip_high", "clip_dual"):
        value = getattr(ratio, key)
        if value is not None:
            finite(value, f"algo.ratio.{key}", 0, open_low=True)
            _acts(f"algo.ratio.{key}", value, a)
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
    need(
        ratio.clip_dual is None or (ratio.clip_high is not None and ratio.clip_dual > 1 + ratio.clip_high),
        "algo.ratio.clip_dual",
        ratio.clip_dual,
        "needs algo.ratio.clip_high and must be above 1 + clip_high: it bounds what that clip leaves unbounded",
    )


def _acts(key: str, value: Any, a: OnPolicy) -> None:
    need(
        a.epochs * a.minibatches > 1,
        key,
        value,
        "can never act: with one update per rollout nothing has moved since sampling. Set algo.epochs or "
        "algo.minibatches above 1, or leave the clip null",
    )


def _rewards(e: Experiment) -> None:
    one_of(e.algo.scale.normalise, NORMALISATIONS, "algo.scale.normalise")
    if e.algo.scale.clip is not None:
        finite(e.algo.scale.clip, "algo.scale.clip", 0, open_low=True)
    need(
        e.reward.formula.strip() != "none",
        "reward.formula",
        "none",
        f"algo={e.algo.name} needs a reward: reward=learned "
        "(trained on the data's pairs), reward=verifier, or your own: reward.formula=package.module:function",
    )


def _truncation(e: Experiment) -> None:
    t = e.algo.truncation
    one_of(t.mode, TRUNCATIONS, "algo.truncation.mode")
    if t.mode in ("penalise", "replace", "ramp"):
        need(t.penalty is not None, "algo.truncation.penalty", t.penalty, f"needs a number with mode={t.mode}")
        finite(t.penalty or 0.0, "algo.truncation.penalty", 0, open_low=True)
    else:
        need(
            t.penalty is None,
            "algo.truncation.penalty",
            t.penalty,
            f"has no effect with algo.truncation.mode={t.mode}; use mode=penalise, replace or ramp",
        )
    need(
        (t.ramp is not None) == (t.mode == "ramp"),
        "algo.truncation.ramp",
        t.ramp,
        f"mode=ramp needs a share of the limit here, the other modes none (algo.truncation.mode={t.mode})",
    )
    if t.ramp is not None:
        need(0 < t.ramp < 1, "algo.truncation.ramp", t.ramp, "must be between 0 and 1: a share of the limit")
