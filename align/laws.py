"""The laws between config fields: what is out of range, contradictory or without effect is refused, with the fix.

Each law is a few lines; `enforce` runs them all on a typed Experiment. Nothing here changes a value.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reward_models.formula import parse

if TYPE_CHECKING:
    from align.schema import Experiment, Kl, OnPolicy, Optimizer, Preference, Ratio


class ConfigError(ValueError):
    """The config is wrong; the message names key, value and fix."""


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
LORA_INITS = ("default", "gaussian", "pissa", "olora")
# Reward terms that need no import; "package.module:function" is any function of the user's.
REWARD_TERMS = ("learned", "gold", "verifier", "length", "terminated")
DTYPES = ("auto", "float32", "bfloat16")
TRACKERS = ("none", "tensorboard", "wandb", "mlflow", "trackio")


def enforce(experiment: Experiment) -> None:
    """Raise ConfigError for the first law that is broken."""
    _top(experiment)
    _model(experiment)
    _data(experiment)
    _sampling_and_probe(experiment)
    _reward(experiment)
    _optimizer(experiment.algo.optimizer, "algo.optimizer", experiment.steps)
    {"on_policy": _on_policy, "preference": _preference, "sft": _sft, "reward": _reward_training}[experiment.algo.kind](
        experiment
    )


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    for key, value in given.items():
        if key not in known:
            where = f"{prefix}.{key}" if prefix else str(key)
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            fix = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"{where}={value!r}: there is no such key; {fix}")


def _need(ok: bool, key: str, value: Any, fix: str) -> None:
    if not ok:
        raise ConfigError(f"{key}={value}: {fix}")


def _one_of(value: Any, options: Sequence[str], key: str) -> None:
    if value not in options:
        near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ConfigError(f"{key}={value}: must be one of {', '.join(options)}{hint}")


def _finite(value: float, key: str, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    inside = (low < value if open_low else low <= value) and value <= high and not math.isnan(value)
    bounds = f"{'>' if open_low else '>='} {low:g}" + ("" if math.isinf(high) else f" and <= {high:g}")
    _need(inside and (math.isfinite(value)), key, value, f"must be {bounds}")


def _positive(value: int, key: str) -> None:
    _need(value >= 1, key, value, "must be >= 1")


def _top(e: Experiment) -> None:
    _need(0 <= e.seed < 2**32, "seed", e.seed, "must be between 0 and 2^32 - 1")
    _positive(e.steps, "steps")
    _one_of(e.dtype, DTYPES, "dtype")
    _one_of(e.tracker, TRACKERS, "tracker")
    kind = e.device.partition(":")[0]
    _one_of(kind, ("auto", "cpu", "cuda", "mps", "xpu"), "device")
    _need(bool(e.runs_root.strip()), "runs_root", repr(e.runs_root), "must name a folder")
    _need(e.run_dir is None or bool(e.run_dir.strip()), "run_dir", repr(e.run_dir), "must name a folder, or be null")


def _model(e: Experiment) -> None:
    _need(bool(e.model.path.strip()), "model.path", repr(e.model.path),
          "must be embedded, tiny, a hub id, a folder or a .gguf file")
    lora = e.model.lora
    if lora is None:
        return
    _positive(lora.rank, "model.lora.rank")
    _finite(lora.alpha, "model.lora.alpha", 0, open_low=True)
    _finite(lora.dropout, "model.lora.dropout", 0, 0.9)
    _need(lora.dropout == 0 or e.algo.kind in ("sft", "reward"), "model.lora.dropout", lora.dropout,
          f"must be 0 with algo={e.algo.name}: dropout makes the policy's logprobs differ from those it sampled with, "
          "or from the reference, before any update")
    _one_of(lora.init, LORA_INITS, "model.lora.init")
    named = isinstance(lora.targets, list) and lora.targets and all(isinstance(t, str) and t for t in lora.targets)
    _need(lora.targets == "all-linear" or bool(named), "model.lora.targets", lora.targets,
          'must be "all-linear" or a list of module names such as [q_proj,v_proj]')
    _need(not (lora.dora and lora.init in ("pissa", "olora")), "model.lora.dora", lora.dora,
          f"does not combine with model.lora.init={lora.init}; turn one of them off")


def _data(e: Experiment) -> None:
    {"annotator": _annotator, "arithmetic": _arithmetic, "jsonl": _jsonl}[e.data.kind](e)


def _annotator(e: Experiment) -> None:
    pool, labels = e.data.pool, e.data.labels
    _need(pool.samples >= 2, "data.pool.samples", pool.samples, "must be >= 2: a pair needs two answers to one prompt")
    _positive(pool.max_new_tokens, "data.pool.max_new_tokens")
    _finite(pool.temperature, "data.pool.temperature", 0, 5, open_low=True)
    _positive(labels.pairs, "data.labels.pairs")
    _need(labels.sharpness > 0, "data.labels.sharpness", labels.sharpness, "must be > 0 (.inf: no label noise)")
    _finite(labels.flips, "data.labels.flips", 0, 0.5)
    _finite(labels.length_bias, "data.labels.length_bias", -10, 10)
    _need(labels.seed >= 0, "data.labels.seed", labels.seed, "must be >= 0")


def _arithmetic(e: Experiment) -> None:
    d = e.data
    _need(2 <= d.terms <= 10, "data.terms", d.terms, "must be between 2 and 10")
    _need(d.low <= d.high, "data.low", d.low, f"must be <= data.high={d.high}")
    _positive(d.train, "data.train")
    _positive(d.heldout, "data.heldout")
    _need(bool(d.task.strip()), "data.task", repr(d.task), 'must be "sum" or the name of a reasoning_gym dataset')


def _jsonl(e: Experiment) -> None:
    d = e.data
    _need(bool(d.path.strip()), "data.path", repr(d.path), "must name a .jsonl file: data=jsonl data.path=FILE")
    _finite(d.heldout, "data.heldout", 0, 0.9, open_low=True)
    for key in ("max_prompt_tokens", "max_completion_tokens"):
        value = getattr(d, key)
        _need(value is None or value >= 1, f"data.{key}", value, "must be >= 1, or null for no limit")


def _sampling_and_probe(e: Experiment) -> None:
    _finite(e.sampling.temperature, "sampling.temperature", 0, 10, open_low=True)
    _positive(e.sampling.max_new_tokens, "sampling.max_new_tokens")
    _positive(e.sampling.rows, "sampling.rows")
    for key in ("every", "prompts", "samples"):
        _positive(getattr(e.probe, key), f"probe.{key}")
    _need(e.probe.pairs >= 0, "probe.pairs", e.probe.pairs, "must be >= 0")


def _reward(e: Experiment) -> None:
    formula, key = e.reward.formula, "reward.formula"
    try:
        terms = parse(formula)
    except ValueError as error:
        raise ConfigError(f"{key}={formula!r}: {error}") from None
    for name, weight in terms.items():
        if ":" not in name:
            _one_of(name, REWARD_TERMS, key)
        _need(weight != 0, key, formula, f"the weight of {name} is 0 and has no effect; leave the term out")
    _need(("learned" in terms) == (e.reward.learned is not None), key, formula,
          "a formula mentions `learned` exactly when reward=learned is chosen; add or drop reward=learned")
    _need("gold" not in terms or e.data.kind == "annotator", key, formula,
          f"data={e.data.name} has no gold score; use data=annotator or another reward")
    _need("verifier" not in terms or e.data.kind in ("arithmetic", "jsonl"), key, formula,
          f"data={e.data.name} has no verifier; use reward=learned")
    if e.reward.learned is not None:
        _learned(e)


def _learned(e: Experiment) -> None:
    learned = e.reward.learned
    assert learned is not None
    _positive(learned.steps, "reward.learned.steps")
    _need(learned.algo.kind == "reward", "reward.learned.algo.kind", learned.algo.kind, "must be reward")
    _optimizer(learned.algo.optimizer, "reward.learned.algo.optimizer", learned.steps)
    _pairs(learned.algo.pairs_per_step, learned.algo.micro_batch, "reward.learned.algo")
    _need(e.model.lora is not None, "model.lora", "none", "a learned reward is a LoRA adapter; keep model.lora, "
          "or use reward=gold, reward=verifier or your own function")


def _optimizer(o: Optimizer, key: str, steps: int) -> None:
    _finite(o.lr, f"{key}.lr", 0, 1, open_low=True)
    _need(len(o.betas) == 2 and all(0 <= b < 1 for b in o.betas), f"{key}.betas", o.betas,
          "must be two numbers in [0, 1), e.g. [0.9,0.999]")
    _finite(o.eps, f"{key}.eps", 0, 1, open_low=True)
    _finite(o.weight_decay, f"{key}.weight_decay", 0, 10)
    _finite(o.max_grad_norm, f"{key}.max_grad_norm", 0, open_low=True)
    _one_of(o.schedule, SCHEDULES, f"{key}.schedule")
    _need(0 <= o.warmup_steps < steps, f"{key}.warmup_steps", o.warmup_steps,
          f"must be >= 0 and below the number of steps, {steps}: otherwise the learning rate never reaches its value")


def _pairs(per_step: int, micro_batch: int, key: str, name: str = "pairs_per_step") -> None:
    _positive(per_step, f"{key}.{name}")
    _positive(micro_batch, f"{key}.micro_batch")
    _need(per_step % micro_batch == 0, f"{key}.{name}", per_step,
          f"must be a multiple of {key}.micro_batch={micro_batch}, so that every optimizer step sees the same amount")


def _sft(e: Experiment) -> None:
    _pairs(e.algo.examples_per_step, e.algo.micro_batch, "algo", "examples_per_step")


def _reward_training(e: Experiment) -> None:
    _pairs(e.algo.pairs_per_step, e.algo.micro_batch, "algo")
    _need(e.algo.center is None or e.algo.center > 0, "algo.center", e.algo.center, "must be > 0, or null for off")
    _need(e.model.lora is not None, "model.lora", "none", "a reward model is a LoRA adapter and a head; keep model.lora")


def _preference(e: Experiment) -> None:
    a: Preference = e.algo
    _one_of(a.loss, LOSSES, "algo.loss")
    _finite(a.beta, "algo.beta", 0, open_low=True)
    _pairs(a.pairs_per_step, a.micro_batch, "algo")
    for knob, losses in LOSS_KNOBS.items():
        value = getattr(a, knob)
        if a.loss in losses:
            _need(value is not None, f"algo.{knob}", value, f"algo.loss={a.loss} needs a number here")
        else:
            _need(value is None, f"algo.{knob}", value,
                  f"has no effect with algo.loss={a.loss}; it belongs to algo={losses[0]}")
    for knob, low, high in (("label_smoothing", 0, 0.499), ("ld_alpha", 0, 1), ("gamma", 0, math.inf),
                            ("length_alpha", -10, 10), ("desirable_weight", 0, math.inf),
                            ("undesirable_weight", 0, math.inf)):
        if getattr(a, knob) is not None:
            _finite(getattr(a, knob), f"algo.{knob}", low, high)
    _need(a.loss != "kto" or a.micro_batch >= 2, "algo.micro_batch", a.micro_batch,
          "algo=kto estimates its KL from mismatched answers within a micro-batch and needs >= 2")


def _on_policy(e: Experiment) -> None:
    a: OnPolicy = e.algo
    for key in ("prompts_per_step", "epochs", "minibatches", "micro_batch"):
        _positive(getattr(a, key), f"algo.{key}")
    _one_of(a.advantage, ADVANTAGES, "algo.advantage")
    _need(a.group_size >= 2, "algo.group_size", a.group_size,
          f"algo.advantage={a.advantage} compares completions of one prompt and needs >= 2")
    batch = a.prompts_per_step * a.group_size
    _need(batch % a.minibatches == 0, "algo.minibatches", a.minibatches,
          f"must divide prompts_per_step x group_size = {batch}")
    _need(batch // a.minibatches % a.micro_batch == 0 or a.micro_batch >= batch // a.minibatches, "algo.micro_batch",
          a.micro_batch, f"must divide the minibatch of {batch // a.minibatches} completions")
    _kl(a.kl)
    _ratio(a.ratio, updates=a.epochs * a.minibatches)
    _one_of(a.aggregate, AGGREGATES, "algo.aggregate")
    _need(a.ratio.level == "token" or a.aggregate == "sequence_mean", "algo.aggregate", a.aggregate,
          f"algo.ratio.level={a.ratio.level} has one ratio per sequence; use algo.aggregate=sequence_mean")
    _truncation(a)
    _need(e.reward.formula.strip() != "none", "reward.formula", "none", f"algo={a.name} needs a reward: reward=learned "
          "(trained on the data's pairs), reward=verifier, or your own: reward.formula=package.module:function")


def _kl(kl: Kl) -> None:
    _one_of(kl.where, ("none", "reward", "loss"), "algo.kl.where")
    if kl.where == "none":
        for key in ("estimator", "coef"):
            _need(getattr(kl, key) is None, f"algo.kl.{key}", getattr(kl, key),
                  "has no effect with algo.kl.where=none; set it to null, or algo.kl.where to reward or loss")
        return
    _one_of(kl.estimator, ESTIMATORS, "algo.kl.estimator")
    _need(kl.coef is not None, "algo.kl.coef", kl.coef, f"algo.kl.where={kl.where} needs a number here")
    _finite(kl.coef or 0.0, "algo.kl.coef", 0, open_low=True)


def _ratio(ratio: Ratio, updates: int) -> None:
    _one_of(ratio.level, RATIO_LEVELS, "algo.ratio.level")
    for key in ("clip_low", "clip_high"):
        value = getattr(ratio, key)
        if value is None:
            continue
        _finite(value, f"algo.ratio.{key}", 0, open_low=True)
        _need(updates > 1, f"algo.ratio.{key}", value, "can never act: with one update per rollout the ratio is exactly "
              "1. Set algo.epochs or algo.minibatches above 1, or leave the clip null")
    _need((ratio.clip_low is None) == (ratio.clip_high is None), "algo.ratio.clip_high", ratio.clip_high,
          f"set both clips or none (algo.ratio.clip_low={ratio.clip_low})")
    _need(ratio.clip_low is None or ratio.clip_low < 1, "algo.ratio.clip_low", ratio.clip_low,
          "must be < 1: a ratio is never negative")


def _truncation(a: OnPolicy) -> None:
    t = a.truncation
    _one_of(t.mode, TRUNCATIONS, "algo.truncation.mode")
    if t.mode == "penalise":
        _need(t.penalty is not None, "algo.truncation.penalty", t.penalty, "needs a number with mode=penalise")
        _finite(t.penalty or 0.0, "algo.truncation.penalty", 0, open_low=True)
    else:
        _need(t.penalty is None, "algo.truncation.penalty", t.penalty,
              f"has no effect with algo.truncation.mode={t.mode}; use mode=penalise")
