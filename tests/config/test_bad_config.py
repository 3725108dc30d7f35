"""What a user can get wrong in a config: refused before a model is loaded, with key, value and fix."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from align import run
from align.refusals import ConfigError
from tests.config.test_conf import composed

VLLM = ["sampling=vllm", "sampling.vllm.urls=[http://127.0.0.1:1]"]
OWN = ["sampling=vllm", f"sampling.vllm.python={sys.executable}"]
IMPORTANCE = ["sampling.importance={level:token,bound:masked,cap:2}"]
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
    (["algo=ppo", "+algo.critic.warmup=2"], ["algo.critic.warmup=2", "warmup_steps"]),
    (["algo=ppo", "+algo.gae.lambda=1"], ["algo.gae.lambda=1", "lam"]),
    (["algo=best_of_n", "+algo.optimizer.lr=1"], ["algo.optimizer"]),
    (["+guard.nonfinit=skip"], ["guard.nonfinit=", "nonfinite"]),
    (["+checkpoint.evry=2"], ["checkpoint.evry=2", "every"]),
    # wrong types
    (["steps=abc"], ["steps", "abc"]),
    (["seed=1.5"], ["seed", "1.5"]),
    (["algo.kl.coef=big"], ["algo.kl.coef", "big"]),
    (["model.lora.rank=x"], ["model.lora.rank", "x"]),
    (["model.lora.dora=maybe"], ["model.lora.dora", "maybe"]),
    (["algo.optimizer.betas=0.9"], ["algo.optimizer.betas"]),
    (["resume=maybe"], ["resume", "maybe"]),
    (["algo.whiten.rewards=maybe"], ["algo.whiten.rewards", "maybe"]),
    (["algo=ppo", "algo.critic=yes"], ["algo.critic"]),
    # enums
    (["algo.advantage=group_normalised"], ["algo.advantage", "group_normalized"]),
    (["algo.kl.estimator=k4"], ["algo.kl.estimator", "k4", "k3"]),
    (["algo.kl.where=losses"], ["algo.kl.where", "loss"]),
    (["algo.ratio.level=word"], ["algo.ratio.level", "token"]),
    (["algo.aggregate=mean"], ["algo.aggregate", "token_mean"]),
    (["algo.truncation.mode=drop"], ["algo.truncation.mode", "mask"]),
    (["algo.optimizer.schedule=cosin"], ["algo.optimizer.schedule", "cosine"]),
    (["algo=dpo", "algo.loss=dpoo"], ["algo.loss", "dpo"]),
    (["model.lora.init=pisa"], ["model.lora.init=pisa", "default", "b_random", "pissa", "zeros", "both_random"]),
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
    (["sampling.top_k=0"], ["sampling.top_k=0", ">= 1", "null"]),
    (["sampling.top_k=2.5"], ["sampling.top_k", "2.5"]),
    (["sampling.top_p=0"], ["sampling.top_p=0", "between 0 and 1", "null"]),
    (["sampling.top_p=1"], ["sampling.top_p=1", "no effect", "null"]),
    (["sampling.top_p=nan"], ["sampling.top_p=nan", "between 0 and 1"]),
    (["sampling.top_p=1.1"], ["sampling.top_p=1.1", "between 0 and 1"]),
    (["sampling.min_p=0"], ["sampling.min_p=0", "no effect", "null"]),
    (["sampling.min_p=1"], ["sampling.min_p=1", "between 0 and 1", "null"]),
    (["sampling.min_p=-0.1"], ["sampling.min_p=-0.1", "between 0 and 1"]),
    (["algo=dpo", "sampling.top_k=50"], ["sampling.top_k=50", "algo=dpo", "null"]),
    (["algo=sft", "sampling.top_p=0.9"], ["sampling.top_p=0.9", "algo=sft", "null"]),
    (["algo=temperature", "sampling.min_p=0.1"], ["sampling.min_p=0.1", "algo=temperature", "null"]),
    (["algo=best_of_n", "sampling.top_k=50"], ["sampling.top_k=50", "algo=best_of_n", "null"]),
    (["+sampling.importance={level:token,bound:truncated,cap:1}"], ["sampling.importance.cap=1", "> 1"]),
    (["+sampling.importance={level:word,bound:masked,cap:2}"], ["sampling.importance.level=word", "token"]),
    (["+sampling.importance={level:token,bound:cut,cap:2}"], ["sampling.importance.bound=cut", "truncated"]),
    (["+sampling.importance={level:token,bound:masked}"], ["sampling.importance.cap", "no value"]),
    (["algo=gspo", *IMPORTANCE], ["sampling.importance.level=token", "one advantage per sequence", "sequence_mean"]),
    (["algo=dpo", *IMPORTANCE], ["sampling.importance", "algo=dpo", "sampling.importance=none"]),
    (["algo=dpo", *VLLM], ["sampling.vllm", "algo=dpo", "sampling.vllm=none"]),
    (["sampling=vllm"], ["sampling.vllm.python=None", "sampling.vllm.urls=[http://HOST:PORT]"]),
    (["sampling=vllm", "sampling.vllm.python=/no/such"], ["sampling.vllm.python=/no/such", "no such file"]),
    ([*VLLM, "sampling.vllm.python=/x"], ["sampling.vllm.python=/x", "sampling.vllm.urls", "null"]),
    ([*VLLM, "sampling.vllm.arguments=[--x]"], ["sampling.vllm.arguments", "sampling.vllm.urls", "[]"]),
    ([*OWN, "sampling.vllm.arguments=['--api_key=k']"], ["sampling.vllm.arguments=--api-key: the run gives"]),
    ([*OWN, "sampling.vllm.arguments=['--port','1']"], ["sampling.vllm.arguments=--port: the run gives"]),
    ([*OWN, "sampling.vllm.arguments=['--enforce-eager=x']"], ["--enforce-eager=x", "takes no value"]),
    ([*OWN, "sampling.vllm.arguments=['--enforce-eager',evil/model]"], ["sampling.vllm.arguments=evil/model", "among"]),
    ([*OWN, "sampling.vllm.arguments=['--max-model-len','--x']"], ["--max-model-len=--x", "a number or a word"]),
    ([*OWN, "sampling.vllm.arguments=['--max_model_len']"], ["--max_model_len=:", "a number or a word"]),
    ([*OWN, "sampling.vllm.arguments=['--uvicorn-log-level=/x']"], ["--uvicorn-log-level=/x", "a number or a word"]),
    (["sampling=vllm", "sampling.vllm.urls=[a]"], ["sampling.vllm.urls=a", "http://HOST:PORT"]),
    (["sampling=vllm", "sampling.vllm.urls=[file:///a]"], ["sampling.vllm.urls=file:///a", "http://HOST:PORT"]),
    (["sampling=vllm", "sampling.vllm.urls=['http://a:b']"], ["sampling.vllm.urls=http://a:b", "http://HOST:PORT"]),
    (["sampling=vllm", "sampling.vllm.urls=['http://a:1/v1']"], ["http://a:1/v1", "must end after the port"]),
    (["sampling=vllm", "sampling.vllm.urls=['http://u:p@a']"], ["(not shown)", "VLLM_API_KEY"]),
    (["sampling=vllm", "sampling.vllm.urls=['http://a','http://a']"], ["sampling.vllm.urls", "twice"]),
    ([*VLLM, "sampling.vllm.seconds=0"], ["sampling.vllm.seconds=0", "> 0"]),
    ([*VLLM, "sampling.vllm.retries=-1"], ["sampling.vllm.retries=-1", "between 0 and 100"]),
    ([*VLLM, "sampling.vllm.gap=nan"], ["sampling.vllm.gap=nan", "> 0"]),
    ([*VLLM, "sampling.top_k=5"], ["sampling.top_k=5", "null with sampling.vllm"]),
    ([*VLLM, "sampling.top_p=0.9"], ["sampling.top_p=0.9", "null with sampling.vllm"]),
    ([*VLLM, "sampling.min_p=0.1"], ["sampling.min_p=0.1", "null with sampling.vllm"]),
    ([*VLLM, "model.lora=none", "reward=gold"], ["sampling.vllm", "only adapters", "model.lora=none"]),
    ([*VLLM, "model.lora.dora=true", "dtype=float32"], ["sampling.vllm", "model.lora.dora"]),
    ([*VLLM, "model.lora.init=pissa", "reward=gold"], ["sampling.vllm", "model.lora.init=pissa"]),
    ([*VLLM, "model.lora.rank=513"], ["model.lora.rank=513", "512"]),
    ([*VLLM, "model.quant=nf4", "sampling.lora=unmerged"], ["sampling.vllm", "model.quant=nf4"]),
    ([*VLLM, "+sampling.vllm.url=x"], ["sampling.vllm.url=", "urls"]),
    (["algo.optimizer.lr=0"], ["algo.optimizer.lr"]),
    (["algo.optimizer.lr=-1e-4"], ["algo.optimizer.lr"]),
    (["algo.optimizer.lr=nan"], ["algo.optimizer.lr=nan", "> 0"]),
    (["algo.optimizer.betas=[0.9]"], ["algo.optimizer.betas"]),
    (["algo.optimizer.betas=[0.9,1.0]"], ["algo.optimizer.betas"]),
    (["algo.optimizer.max_grad_norm=0"], ["algo.optimizer.max_grad_norm"]),
    (["algo.kl.coef=-0.1"], ["algo.kl.coef"]),
    (["model.lora.rank=0"], ["model.lora.rank"]),
    (["model.lora.targets=[]"], ["model.lora.targets", "all-linear"]),
    (["data.labels.annotators=0"], ["data.labels.annotators=0", "between 1 and data.labels.pairs=1024"]),
    (["data.labels.annotators=13", "data.labels.pairs=12"], ["data.labels.annotators=13", "data.labels.pairs=12"]),
    (["data.labels.annotators=1.5"], ["data.labels.annotators", "1.5"]),
    (["+data.labels.annotator=2"], ["data.labels.annotator=2", "annotators"]),
    (["data.labels.similarity=[0.5]"], ["data.labels.similarity=[0.5]", "[lowest, highest]"]),
    (["data.labels.similarity=[0.5,0.5]"], ["data.labels.similarity", "null keeps every pair"]),
    (["data.labels.similarity=[0,2]"], ["data.labels.similarity", "within [0, 1]"]),
    (["probe.train_pairs=0"], ["probe.train_pairs=0", "null"]),
    (["data.labels.flips=0.6"], ["data.labels.flips"]),
    (["data.labels.sharpness=0"], ["data.labels.sharpness", "(inf: no label noise)"]),
    (["data.pool.samples=1"], ["data.pool.samples", ">= 2"]),
    (["data=arithmetic", "data.terms=1"], ["data.terms"]),
    (["data=arithmetic", "data.low=9", "data.high=3"], ["data.low", "data.high"]),
    (["data=jsonl", "algo=dpo", "data.path=x", "data.heldout=0"], ["data.heldout"]),
    (["data=gsm8k", "data.train=0"], ["data.train=0", "null"]),
    (["data=gsm8k", "data.heldout=0"], ["data.heldout=0", ">= 1"]),
    (["data=gsm8k", "data.heldout=0.1"], ["data.heldout", "0.1"]),
    (["data=gsm8k", "data.folders=[]"], ["data.folders=[]", "[.]"]),
    (["data=gsm8k", "data.columns=[question]"], ["data.columns=['question']", "['question', 'answer']"]),
    (["data=gsm8k", "data.repo=''"], ["data.repo=''", "empty"]),
    (["data=gsm8k", "data.heldout_split=train"], ["data.heldout_split=train", "data.train_split"]),
    (["data=gsm8k", "data.path=x", "data.revision=y"], ["data.revision=y", "data.path"]),
    (["data=gsm8k", "data.max_prompt_tokens=0"], ["data.max_prompt_tokens=0", "null"]),
    (["data=tldr", "reward=verifier"], ["reward.formula=verifier", "data=tldr has no verifier"]),
    (["data=tldr", "reward=none"], ["reward.formula", "reward=learned"]),
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
    (["model.lora.dora=true", "model.lora.init=b_random"], ["model.lora.dora", "b_random"]),
    (["model.lora.init=zeros", "reward=gold"], ["model.lora.init=zeros", "control", "algo=sft", "b_random"]),
    (["model.lora.init=both_random", "algo=sft"], ["model.lora.init=both_random", "reward=gold"]),
    (["model.lora.init=pissa"], ["model.lora.init", "reward"]),
    (["model.lora.init=pissa", "reward=gold", "model.start=runs/x"], ["model.lora.init", "model.start"]),
    (["algo=reward", "reward=none", "model.lora.init=olora"], ["model.lora.init", "reward"]),
    (["model.quant=int4"], ["model.quant=int4", "nf4"]),
    (["model.quant=nf4", "model.lora=none", "reward=gold"], ["model.quant=nf4", "keep model.lora"]),
    (["model.quant=nf4", "model.lora.init=pissa", "reward=gold"], ["model.quant=nf4", "model.lora.init=pissa"]),
    (["model.quant=nf4", "model.lora.dora=true", "dtype=float32"], ["model.quant=nf4", "model.lora.dora"]),
    (["model.quant=nf4", "model.start=runs/x"], ["model.quant=nf4", "model.start"]),
    (["model.quant=nf4"], ["model.quant=nf4", "sampling.lora=unmerged"]),
    (["model.lora=none"], ["model.lora", "learned"]),
    (["algo=reward", "reward=none", "model.lora=none"], ["model.lora"]),
    # rewards
    (["sampling.lora=both"], ["sampling.lora", "unmerged"]),
    (["model.lora=none", "reward=gold", "sampling.lora=unmerged"], ["sampling.lora", "no effect"]),
    (["algo.micro_batch_tokens=0"], ["algo.micro_batch_tokens", ">= 1"]),
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
    (["data.pool.temperature=inf"], ["data.pool.temperature=inf", "<= 5"]),
]

# Of the on-policy loop, of guards and checkpoints. Overrides on top of algo=ppo (or what they name) -> key=value, fix
HORIZON = "algo.kl.horizon_completions"
ON_POLICY = [
    # the batch
    *([[f"algo.{key}=0"], [f"algo.{key}=0", ">= 1"]]
      for key in ("prompts_per_step", "group_size", "max_draws", "epochs", "minibatches", "micro_batch")),
    (["algo.max_draws=2"], ["algo.max_draws=2", "use 1"]),
    (["algo=reinforce_pp", "algo.max_draws=2"], ["algo.max_draws=2", "algo.advantage=reward", "use 1"]),
    # advantages
    (["algo.gae=none"], ["algo.gae=none", "algo=ppo"]),
    (["algo.critic=none"], ["algo.critic=none", "algo=ppo"]),
    (["algo=grpo", "algo.advantage=gae"], ["algo.gae=none", "algo=ppo"]),
    (["algo.advantage=reward"], ["algo.gae=given", "algo.gae=none"]),
    (["algo.advantage=reward", "algo.gae=none"], ["algo.critic=given", "algo.critic=none"]),
    (["algo.gae.gamma=1.01"], ["algo.gae.gamma=1.01", "<= 1"]),
    (["algo.gae.lam=-0.1"], ["algo.gae.lam=-0.1", ">= 0"]),
    (["algo.gae.critic_lam=2"], ["algo.gae.critic_lam=2", "<= 1"]),
    (["algo.ratio.level=sequence_mean"], ["algo.ratio.level=sequence_mean", "algo.ratio.level=token"]),
    # the critic
    (["algo.critic.kind=adaptor"], ["algo.critic.kind=adaptor", "adapter"]),
    (["algo.critic.init=zeros"], ["algo.critic.init=zeros", "zero"]),
    (["algo.critic.coef=-1"], ["algo.critic.coef=-1", ">= 0"]),
    (["algo.critic.lr=0"], ["algo.critic.lr=0", "> 0"]),
    (["algo.critic.clip=0"], ["algo.critic.clip=0", "> 0"]),
    (["algo.minibatches=1", "algo.critic.clip=0.2"], ["algo.critic.clip=0.2", "never act", "null"]),
    (["algo.minibatches=1"], ["algo.ratio.clip_low=0.2", "never act", "null"]),
    (["algo.critic.warmup_steps=60"], ["algo.critic.warmup_steps=60", "below steps=60"]),
    (["algo.critic.warmup_steps=-1"], ["algo.critic.warmup_steps=-1", ">= 0"]),
    (["model.lora=none", "reward=gold"], ["algo.critic.kind=adapter", "algo.critic.kind=head"]),
    (["algo.critic.init=reward", "reward=gold"], ["algo.critic.init=reward", "reward=learned"]),
    (["algo.critic.init=reward"], ["algo.critic.init=reward", "add algo.scale.normalise=none"]),
    (["algo.critic.init=reward", "algo.critic.kind=head"], ["algo.critic.init=reward", "algo.critic.kind=adapter"]),
    (["model.lora.init=pissa", "reward=gold"], ["algo.critic.kind=adapter", "model.lora.init=default"]),
    # KL
    (["algo=gspo", "algo.kl.target_nats_per_sequence=6"], ["algo.kl.target_nats_per_sequence=6", "null"]),
    (["algo=gspo", f"{HORIZON}=9999"], [f"{HORIZON}=9999", "null"]),
    (["algo=grpo", "algo.kl.estimator=k1"], ["algo.kl.estimator=k1", "k3", "algo.kl.where=reward"]),
    (["algo.kl.coef=null"], ["algo.kl.coef=None", "needs a number"]),
    (["algo.kl.coef=0"], ["algo.kl.coef=0", "> 0"]),
    (["algo.kl.target_nats_per_sequence=6"], [f"{HORIZON}=None", "needs both"]),
    ([f"{HORIZON}=9999"], [f"{HORIZON}=9999", "needs both", "algo.kl.target_nats_per_sequence=None"]),
    ([f"{HORIZON}=9999", "algo.kl.target_nats_per_sequence=0"], ["algo.kl.target_nats_per_sequence=0", "> 0"]),
    ([f"{HORIZON}=31", "algo.kl.target_nats_per_sequence=6"], [f"{HORIZON}=31", "at least", "32"]),
    ([f"{HORIZON}=inf", "algo.kl.target_nats_per_sequence=6"], [f"{HORIZON}=inf", "at least"]),
    # ratios
    (["algo.ratio.clip_low=0"], ["algo.ratio.clip_low=0", "> 0"]),
    (["algo.ratio.clip_high=null"], ["algo.ratio.clip_high=None", "both"]),
    (["algo.ratio.clip_dual=1.1"], ["algo.ratio.clip_dual=1.1", "above 1 + clip_high"]),
    (["algo=grpo", "algo.ratio.clip_dual=3"], ["algo.ratio.clip_dual=3", "never act"]),
    (["algo=grpo", "algo.epochs=2", "algo.ratio.clip_dual=3"], ["algo.ratio.clip_dual=3", "algo.ratio.clip_high"]),
    (["algo=gspo", "algo.aggregate=token_mean"], ["algo.aggregate=token_mean", "algo.aggregate=sequence_mean"]),
    # rewards and truncation
    (["reward=none"], ["reward.formula=none", "algo=ppo", "reward=learned"]),
    (["algo.scale.normalise=always"], ["algo.scale.normalise=always", "running"]),
    (["algo.scale.clip=0"], ["algo.scale.clip=0", "> 0"]),
    (["algo.truncation.mode=replace"], ["algo.truncation.penalty=None", "needs a number"]),
    (["algo.truncation.mode=mask", "algo.truncation.penalty=1"], ["algo.truncation.penalty=1", "mode=penalise"]),
    (["algo=dapo", "algo.truncation.penalty=0"], ["algo.truncation.penalty=0", "> 0"]),
    (["algo=dapo", "algo.truncation.ramp=null"], ["algo.truncation.ramp=None", "share of the limit"]),
    (["algo=dapo", "algo.truncation.ramp=1"], ["algo.truncation.ramp=1", "between 0 and 1"]),
    (["algo.truncation.ramp=0.2"], ["algo.truncation.ramp=0.2", "algo.truncation.mode=keep"]),
    # best of n
    (["algo=best_of_n", "steps=11"], ["steps=11", "at most 10"]),
    (["algo=best_of_n", "steps=0"], ["steps=0", ">= 1"]),
    (["algo=temperature", "steps=4"], ["steps=4", "use 3"]),
    (["algo=temperature", "algo.temperatures=[0.9,0.5]"], ["algo.temperatures", "begin with 1"]),
    (["algo=temperature", "algo.temperatures=[1.0,0.5,0.5]"], ["algo.temperatures", "each once"]),
    (["algo=temperature", "algo.temperatures=[1.0,0.0]"], ["algo.temperatures", "0"]),
    (["algo=temperature", "algo.top_ps=[1.0,0.9]"], ["algo.top_ps=[1.0, 0.9]", "algo.temperatures, 4", "null"]),
    (["algo=temperature", "algo.top_ps=[0.9,1.0,1.0,1.0]"], ["algo.top_ps", "begin with 1"]),
    (["algo=temperature", "algo.top_ps=[1.0,1.0,1.0,1.0]"], ["algo.top_ps", "no effect", "null"]),
    (["algo=temperature", "algo.top_ps=[1.0,0.9,0.0,1.0]"], ["algo.top_ps", "0"]),
    (["algo=temperature", "algo.top_ps=[1.0,0.9,1.1,1.0]"], ["algo.top_ps", "1.1"]),
    (["algo=temperature", "algo.temperatures=[1.0,1.0,0.5,0.5]", "algo.top_ps=[1.0,0.9,0.9,0.9]"],
     ["algo.temperatures", "each once (with its algo.top_ps)"]),
    (["algo=temperature", "probe.every=2"], ["probe.every=2", "must be 1"]),
    (["algo=temperature", "sampling.temperature=0.7"], ["sampling.temperature=0.7", "has no effect", "use 1"]),
    (["algo=dpo", "sampling.temperature=0.5"], ["sampling.temperature=0.5", "has no effect", "use 1"]),
    (["algo=temperature", "algo.temperatures=[]", "algo.top_ps=[]"], ["algo.top_ps=[]"]),
    (["device=cuda:x"], ["device=cuda:x", "cuda:1"]),
    (["device=auto:3"], ["device=auto:3"]),
    (["device=cpu:"], ["device=cpu:"]),
    (["reward=learned", "reward.learned.algo.center=-1"], ["reward.learned.algo.center=-1"]),
    (["algo=best_of_n", "reward=none"], ["reward.formula=none", "reward=learned"]),
    # guards and checkpoints
    (["guard.nonfinite=ignore"], ["guard.nonfinite=ignore", "stop, skip"]),
    (["guard.log_ratio=0"], ["guard.log_ratio=0", "> 0"]),
    (["guard.log_ratio=nan"], ["guard.log_ratio=nan", "> 0"]),
    (["guard.kl_nats_per_sequence=-1"], ["guard.kl_nats_per_sequence=-1", "> 0"]),
    (["model.name=../../elsewhere"], ["model.name=", "folder"]),
    (["algo.name=a/b"], ["algo.name=", "folder"]),
    (["data.name=.."], ["data.name=", "folder"]),
    (["reward_seconds=0"], ["reward_seconds=0", "> 0"]),
    (["reward_seconds=inf"], ["reward_seconds=inf"]),
    (["checkpoint.every=0"], ["checkpoint.every=0", ">= 1"]),
    (["checkpoint.keep=0"], ["checkpoint.keep=0", ">= 1"]),
]  # fmt: skip
BAD += [(["algo=ppo", *overrides], named) for overrides, named in ON_POLICY]


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


def test_what_an_error_quotes_cannot_steer_the_terminal(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["align.run", "model=tiny", "tracker='\x1b]0;title\x07'"])
    with pytest.raises(SystemExit) as end:
        run.main()
    said = capfd.readouterr().err
    assert end.value.code == 1 and "\x1b" not in said and "\x07" not in said and "title" in said
