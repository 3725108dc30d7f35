"""The laws between config fields: what is out of range, contradictory or without effect is refused, with the fix.

Each law is a few lines; `enforce` runs them all on a typed Experiment. Nothing here changes a value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from align import algo_laws, data_laws, vllm_laws
from align.on_policy_laws import MUTATING_INITS
from align.refusals import ConfigError, finite, need, one_of, positive, reachable
from reward_models.formula import parse

if TYPE_CHECKING:
    from align.schema import Experiment, Lora

QUANTS = ("nf4",)
LORA_INITS = ("default", "gaussian", "b_random", "pissa", "olora", "zeros", "both_random")
# Reward terms that need no import; "package.module:function" is any function of the user's.
REWARD_TERMS = ("learned", "gold", "verifier", "length", "terminated")
DTYPES = ("auto", "float32", "bfloat16")
TRACKERS = ("none", "tensorboard", "wandb", "mlflow", "trackio")


def enforce(experiment: Experiment) -> None:
    """Raise ConfigError for the first law that is broken."""
    _top(experiment)
    _model(experiment)
    data_laws.enforce(experiment)
    _sampling_and_probe(experiment)
    _guard_and_checkpoint(experiment)
    _reward(experiment)
    if experiment.algo.kind not in algo_laws.UNTRAINED:
        algo_laws.optimizer(experiment.algo.optimizer, "algo.optimizer", experiment.steps)
    algo_laws.LAWS[experiment.algo.kind](experiment)
    vllm_laws.enforce(experiment)


def _top(e: Experiment) -> None:
    need(0 <= e.seed < 2**32, "seed", e.seed, "must be between 0 and 2^32 - 1")
    positive(e.steps, "steps")
    one_of(e.dtype, DTYPES, "dtype")
    for group in ("algo", "model", "data"):
        name = getattr(e, group).name
        need(re.fullmatch(r"\w[\w.+-]*", name) is not None, f"{group}.name", repr(name),
             "must be letters, digits and . _ + - only: it is part of the name of the run's folder")  # fmt: skip
    if e.reward_seconds is not None:
        finite(e.reward_seconds, "reward_seconds", 0, open_low=True)
    one_of(e.tracker, TRACKERS, "tracker")
    kind, numbered, number = e.device.partition(":")
    one_of(kind, ("auto", "cpu", "cuda", "mps", "xpu"), "device")
    need(not numbered or (kind != "auto" and re.fullmatch(r"[0-9]{1,3}", number) is not None), "device", e.device,
         "must be such as cpu, cuda or cuda:1")  # fmt: skip
    need(bool(e.runs_root.strip()), "runs_root", repr(e.runs_root), "must name a folder")
    need(e.run_dir is None or bool(e.run_dir.strip()), "run_dir", repr(e.run_dir), "must name a folder, or be null")
    for key, path in (("run_dir", e.run_dir), ("runs_root", e.runs_root)):
        reachable(key, path)


def _model(e: Experiment) -> None:
    need(
        bool(e.model.path.strip()),
        "model.path",
        repr(e.model.path),
        "must be embedded, tiny, a hub id, a folder or a .gguf file",
    )
    reachable("model.path", e.model.path)
    reachable("model.start", e.model.start)
    if e.model.lora is not None:
        _lora(e, e.model.lora)
    if e.model.quant is not None:
        _quant(e)


def _quant(e: Experiment) -> None:
    key, quant, lora = "model.quant", e.model.quant, e.model.lora
    one_of(quant, QUANTS, key)
    need(lora is not None, key, quant, "is of a frozen base, and model.lora=none trains it; keep model.lora")
    assert lora is not None
    need(lora.init not in MUTATING_INITS, key, quant,
         f"has no weights that model.lora.init={lora.init} could rewrite; use model.lora.init=default")  # fmt: skip
    need(not lora.dora, key, quant, "does not combine with model.lora.dora, whose norms need the weights; turn it off")
    need(e.model.start is None, key, quant,
         "cannot take up model.start: its adapter, merged into 4 bits, would be rounded; leave one out")  # fmt: skip
    need(e.sampling.lora == "unmerged", key, quant,
         "needs sampling.lora=unmerged: a merged copy would be the whole base in 16 bits again")  # fmt: skip


def _lora(e: Experiment, lora: Lora) -> None:
    positive(lora.rank, "model.lora.rank")
    finite(lora.alpha, "model.lora.alpha", 0, open_low=True)
    finite(lora.dropout, "model.lora.dropout", 0, 0.9)
    need(
        lora.dropout == 0 or e.algo.kind in ("sft", "reward"),
        "model.lora.dropout",
        lora.dropout,
        f"must be 0 with algo={e.algo.name}: dropout makes the policy's logprobs differ from those it sampled with, "
        "or from the reference, before any update",
    )
    one_of(lora.init, LORA_INITS, "model.lora.init")
    named = isinstance(lora.targets, list) and lora.targets and all(isinstance(t, str) and t for t in lora.targets)
    need(
        lora.targets == "all-linear" or bool(named),
        "model.lora.targets",
        lora.targets,
        'must be "all-linear" or a list of module names such as [q_proj,v_proj]',
    )
    _lora_variants(e, lora)


def _lora_variants(e: Experiment, lora: Lora) -> None:
    need(
        not (lora.dora and lora.init not in ("default", "gaussian")),
        "model.lora.dora",
        lora.dora,
        f"does not combine with model.lora.init={lora.init}; turn one of them off",
    )
    need(
        lora.init not in MUTATING_INITS or e.model.start is None,
        "model.lora.init",
        lora.init,
        "rewrites the base and cannot be combined with model.start; use model.lora.init=default",
    )
    need(
        lora.init not in MUTATING_INITS or (e.algo.kind != "reward" and e.reward.learned is None),
        "model.lora.init",
        lora.init,
        "rewrites the weights that a reward model shares with the policy; use default or gaussian, or a reward that "
        "is not learned",
    )
    need(
        lora.init not in ("zeros", "both_random") or (e.algo.kind == "sft" and e.reward.learned is None),
        "model.lora.init",
        lora.init,
        "is a control (zeros never learns, both_random does not start from the base) and goes with algo=sft and a "
        "reward that is not learned, e.g. reward=gold; use default, gaussian or b_random",
    )
    need(
        not lora.dora or e.dtype == "float32",
        "model.lora.dora",
        lora.dora,
        "needs dtype=float32: in bfloat16 its norms round, and the start would not equal the base",
    )


def _sampling_and_probe(e: Experiment) -> None:
    finite(e.sampling.temperature, "sampling.temperature", 0, 10, open_low=True)
    positive(e.sampling.max_new_tokens, "sampling.max_new_tokens")
    positive(e.sampling.rows, "sampling.rows")
    one_of(e.sampling.lora, ("merged", "unmerged"), "sampling.lora")
    need(
        e.model.lora is not None or e.sampling.lora == "merged",
        "sampling.lora",
        e.sampling.lora,
        "has no effect without an adapter; use merged",
    )
    _cuts(e)
    for key in ("every", "prompts", "samples"):
        positive(getattr(e.probe, key), f"probe.{key}")
    need(e.probe.pairs >= 0, "probe.pairs", e.probe.pairs, "must be >= 0")
    few = e.probe.train_pairs
    need(few is None or few > 0, "probe.train_pairs", few, "must be > 0, or null to look at held-out pairs alone")


def _cuts(e: Experiment) -> None:
    s = e.sampling
    need(s.top_k is None or s.top_k >= 1, "sampling.top_k", s.top_k, "must be >= 1, or null to cut nothing")
    for key, value in (("top_p", s.top_p), ("min_p", s.min_p)):
        none = 1 if key == "top_p" else 0
        need(value != none, f"sampling.{key}", value, "cuts nothing and has no effect; use null")
        need(
            value is None or 0 < value < 1, f"sampling.{key}", value, "must be between 0 and 1, or null to cut nothing"
        )
    knobs = (
        ("temperature", s.temperature, 1),
        ("top_k", s.top_k, None),
        ("top_p", s.top_p, None),
        ("min_p", s.min_p, None),
    )
    for key, value, none in knobs:
        need(
            value == none or e.algo.kind == "on_policy",
            f"sampling.{key}",
            value,
            f"has no effect with algo={e.algo.name}, which samples nothing to train on; use {none or 'null'}",
        )


def _guard_and_checkpoint(e: Experiment) -> None:
    one_of(e.guard.nonfinite, ("stop", "skip"), "guard.nonfinite")
    finite(e.guard.log_ratio, "guard.log_ratio", 0, open_low=True)
    finite(e.guard.kl_nats_per_sequence, "guard.kl_nats_per_sequence", 0, open_low=True)
    positive(e.checkpoint.every, "checkpoint.every")
    positive(e.checkpoint.keep, "checkpoint.keep")


def _reward(e: Experiment) -> None:
    formula, key = e.reward.formula, "reward.formula"
    try:
        terms = parse(formula)
    except ValueError as error:
        raise ConfigError(f"{key}={formula!r}: {error}") from None
    for name, weight in terms.items():
        if ":" not in name:
            one_of(name, REWARD_TERMS, key)
        need(weight != 0, key, formula, f"the weight of {name} is 0 and has no effect; leave the term out")
    need(
        ("learned" in terms) == (e.reward.learned is not None),
        key,
        formula,
        "a formula mentions `learned` exactly when reward=learned is chosen; choose reward=learned, or reward=none and "
        "your own formula",
    )
    need(
        "gold" not in terms or e.data.kind == "annotator",
        key,
        formula,
        f"data={e.data.name} has no gold score; use data=annotator or another reward",
    )
    need(
        "verifier" not in terms or e.data.kind in ("arithmetic", "jsonl") or _has_questions(e),
        key,
        formula,
        f"data={e.data.name} has no verifier; use reward=learned",
    )
    if e.reward.learned is not None:
        _learned(e)


def _has_questions(e: Experiment) -> bool:
    return e.data.kind == "hub" and "question" in e.data.columns


def _learned(e: Experiment) -> None:
    learned = e.reward.learned
    assert learned is not None
    reachable("reward.learned.run", learned.run)
    positive(learned.steps, "reward.learned.steps")
    need(learned.algo.kind == "reward", "reward.learned.algo.kind", learned.algo.kind, "must be reward")
    algo_laws.optimizer(learned.algo.optimizer, "reward.learned.algo.optimizer", learned.steps)
    algo_laws.pairs(learned.algo.pairs_per_step, learned.algo.micro_batch, "reward.learned.algo")
    algo_laws.center(learned.algo.center, "reward.learned.algo.center")
    need(
        e.model.lora is not None,
        "model.lora",
        "none",
        "a learned reward is a LoRA adapter; keep model.lora, or use reward=gold, reward=verifier or your own function",
    )
