"""What a user can get wrong in a config: refused before a model is loaded, with key, value and fix."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from align.refusals import ConfigError
from tests.config.test_conf import composed

# overrides -> what the message must name
BAD = [
    # unknown keys, which Hydra lets through with +
    (["+stepz=5"], ["stepz", "steps"]),
    (["+algo.betta=1"], ["algo.betta"]),
    (["+algo.kl.coff=0.1"], ["algo.kl.coff", "coef"]),
    (["+algo.optimizer.learning_rate=1"], ["algo.optimizer.learning_rate"]),
    (["+model.lora.rnk=8"], ["model.lora.rnk", "rank"]),
    (["+data.labels.lenght_bias=1"], ["data.labels.lenght_bias", "length_bias"]),
    (["+reward.learned.algo.betta=1"], ["reward.learned.algo.betta"]),
    (["+probe.evry=2"], ["probe.evry", "every"]),
    # wrong types
    (["steps=abc"], ["steps", "abc"]),
    (["seed=1.5"], ["seed", "1.5"]),
    (["algo.kl.coef=big"], ["algo.kl.coef", "big"]),
    (["model.lora.rank=x"], ["model.lora.rank", "x"]),
    (["model.lora.dora=maybe"], ["model.lora.dora", "maybe"]),
    (["algo.optimizer.betas=0.9"], ["algo.optimizer.betas"]),
    # enums
    (["algo.advantage=group_normalised"], ["algo.advantage", "group_normalized"]),
    (["algo.kl.estimator=k4"], ["algo.kl.estimator", "k4", "k3"]),
    (["algo.kl.where=losses"], ["algo.kl.where", "loss"]),
    (["algo.ratio.level=word"], ["algo.ratio.level", "token"]),
    (["algo.aggregate=mean"], ["algo.aggregate", "token_mean"]),
    (["algo.truncation.mode=drop"], ["algo.truncation.mode", "mask"]),
    (["algo.optimizer.schedule=cosin"], ["algo.optimizer.schedule", "cosine"]),
    (["algo=dpo", "algo.loss=dpoo"], ["algo.loss", "dpo"]),
    (["model.lora.init=pisa"], ["model.lora.init", "pissa"]),
    (["dtype=float16"], ["dtype", "bfloat16"]),
    (["device=gpu"], ["device", "cuda"]),
    (["tracker=tb"], ["tracker", "tensorboard"]),
    (["algo.kind=ppo"], ["algo.kind", "ppo"]),
    # out of range
    (["steps=0"], ["steps", ">= 1"]),
    (["seed=-1"], ["seed"]),
    (["probe.every=0"], ["probe.every"]),
    (["probe.prompts=0"], ["probe.prompts"]),
    (["probe.pairs=-1"], ["probe.pairs"]),
    (["sampling.temperature=0"], ["sampling.temperature", "> 0"]),
    (["sampling.max_new_tokens=0"], ["sampling.max_new_tokens"]),
    (["sampling.rows=-2"], ["sampling.rows"]),
    (["algo.optimizer.lr=0"], ["algo.optimizer.lr"]),
    (["algo.optimizer.lr=-1e-4"], ["algo.optimizer.lr"]),
    (["algo.optimizer.lr=.nan"], ["algo.optimizer.lr"]),
    (["algo.optimizer.betas=[0.9]"], ["algo.optimizer.betas"]),
    (["algo.optimizer.betas=[0.9,1.0]"], ["algo.optimizer.betas"]),
    (["algo.optimizer.max_grad_norm=0"], ["algo.optimizer.max_grad_norm"]),
    (["algo.kl.coef=-0.1"], ["algo.kl.coef"]),
    (["model.lora.rank=0"], ["model.lora.rank"]),
    (["model.lora.targets=[]"], ["model.lora.targets", "all-linear"]),
    (["data.labels.flips=0.6"], ["data.labels.flips"]),
    (["data.labels.sharpness=0"], ["data.labels.sharpness"]),
    (["data.pool.samples=1"], ["data.pool.samples", ">= 2"]),
    (["data=arithmetic", "data.terms=1"], ["data.terms"]),
    (["data=arithmetic", "data.low=9", "data.high=3"], ["data.low", "data.high"]),
    (["data=jsonl", "algo=dpo", "data.path=x", "data.heldout=0"], ["data.heldout"]),
    (["algo=dpo", "algo.beta=0"], ["algo.beta"]),
    (["algo=cdpo", "algo.label_smoothing=0.5"], ["algo.label_smoothing"]),
    (["algo=ldpo", "algo.ld_alpha=1.5"], ["algo.ld_alpha"]),
    # contradictions and knobs without effect
    (["algo.group_size=1"], ["algo.group_size", ">= 2"]),
    (
        ["algo.prompts_per_step=3", "algo.group_size=3", "algo.minibatches=2", "algo.micro_batch=1"],
        ["algo.minibatches"],
    ),
    (["algo.micro_batch=5"], ["algo.micro_batch", "minibatch"]),
    (["algo=dpo", "algo.pairs_per_step=6", "algo.micro_batch=4"], ["algo.pairs_per_step", "multiple"]),
    (["algo.ratio.clip_low=0.2", "algo.ratio.clip_high=0.2"], ["algo.ratio.clip_low", "never act"]),
    (["algo.epochs=2", "algo.ratio.clip_low=0.2"], ["algo.ratio.clip_high", "both"]),
    (["algo.epochs=2", "algo.ratio.clip_low=1.5", "algo.ratio.clip_high=0.2"], ["algo.ratio.clip_low", "< 1"]),
    (["algo.kl.where=none"], ["algo.kl.estimator", "no effect"]),
    (["algo=dr_grpo", "algo.kl.coef=0.1"], ["algo.kl.coef", "no effect"]),
    (["algo=dr_grpo", "algo.kl.where=loss"], ["algo.kl.estimator"]),
    (["algo=rloo", "algo.aggregate=token_mean"], ["algo.aggregate", "sequence_mean"]),
    (["algo.truncation.penalty=1.0"], ["algo.truncation.penalty", "no effect"]),
    (["algo.truncation.mode=penalise"], ["algo.truncation.penalty", "needs a number"]),
    (["algo=dpo", "algo.gamma=1.0"], ["algo.gamma", "simpo"]),
    (["algo=dpo", "algo.label_smoothing=0.1"], ["algo.label_smoothing", "cdpo"]),
    (["algo=cdpo", "algo.label_smoothing=null"], ["algo.label_smoothing", "needs a number"]),
    (["algo=kto", "algo.micro_batch=1"], ["algo.micro_batch", "kto"]),
    (["algo.optimizer.warmup_steps=60"], ["algo.optimizer.warmup_steps", "60"]),
    (["model.lora.dropout=0.1"], ["model.lora.dropout", "must be 0"]),
    (["model.lora.dora=true", "model.lora.init=pissa"], ["model.lora.dora", "pissa"]),
    (["model.lora.init=pissa"], ["model.lora.init", "reward"]),
    (["model.lora.init=pissa", "reward=gold", "model.start=runs/x"], ["model.lora.init", "model.start"]),
    (["algo=reward", "reward=none", "model.lora.init=olora"], ["model.lora.init", "reward"]),
    (["model.lora=none"], ["model.lora", "learned"]),
    (["algo=reward", "reward=none", "model.lora=none"], ["model.lora"]),
    # rewards
    (["reward=none"], ["reward.formula", "reward=learned"]),
    (["data=arithmetic", "reward=gold"], ["reward.formula", "gold"]),
    (["reward=verifier"], ["reward.formula", "verifier"]),
    (["reward=gold", "reward.formula=goldd"], ["reward.formula", "gold"]),
    (["reward=gold", "reward.formula=gold +"], ["reward.formula", "cannot read"]),
    (["reward=gold", "reward.formula=gold length"], ["reward.formula", "cannot read"]),
    (["reward=gold", "reward.formula=gold + gold"], ["reward.formula", "twice"]),
    (["reward=gold", "reward.formula=0*gold"], ["reward.formula", "no effect"]),
    (["reward=gold", "reward.formula=''"], ["reward.formula", "empty"]),
    (["reward=gold", "reward.formula=learned"], ["reward.formula", "reward=learned"]),
    (["reward.formula=length"], ["reward.formula", "learned"]),
    (["data.pool.temperature=.inf"], ["data.pool.temperature"]),
]


@pytest.mark.parametrize(("overrides", "named"), BAD, ids=[" ".join(o) for o, _ in BAD])
def test_a_bad_config_is_refused_by_name(overrides, named):
    with pytest.raises(ConfigError) as refusal:
        composed(*overrides)
    for word in named:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["algo=gpro"], ["gpro", "grpo"]),
        (["sampling=7"], ["must be a string"]),
        (["algo.kl.coff=1"], ["algo.kl.coff", "coef"]),
        (["stepz=3"], ["stepz", "steps"]),
        (["data=jsonl", "algo=dpo"], ["data.path"]),
        (["algo.group_size=1"], ["algo.group_size=1", ">= 2"]),
    ],
)
def test_the_command_line_says_it_in_one_message_within_three_seconds(overrides, named, tmp_path):
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "align.run", f"runs_root={tmp_path}/runs", *overrides],
                          capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert time.monotonic() - started < 3
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in named:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_checking_a_config_loads_neither_torch_nor_trl():
    code = ("import sys; from tests.config.test_conf import composed; composed('algo=dpo'); "
            "print([m for m in ('torch', 'trl', 'peft', 'transformers') if m in sys.modules])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
