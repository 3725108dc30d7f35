"""How the cost of a rollout grows: seconds to sample, score and differentiate 16 to 256 completions of 16 to 64 tokens.

    python scripts/scaling.py

SmolLM2-135M, bfloat16, LoRA, four prompts for every 16 completions, lengths forced; docs/performance.md has a table.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from hydra import compose, initialize_config_dir

from align.config import check
from align.data.annotator import pool_prompts
from align.device import keep_freed_memory
from align.forward import Scorer, batch_of, micro_batches, score
from align.models import load_policy
from align.run import CONF
from align.sampling import sample

CASES = ((16, 64), (64, 64), (256, 64), (64, 16), (64, 32))  # completions, tokens


def main() -> None:
    keep_freed_memory()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = check(compose("run", overrides=["device=cpu", "dtype=bfloat16"]))
    policy = load_policy(experiment.model, torch.device("cpu"), torch.bfloat16, seed=0)
    policy.stop_ids = ()
    prompts = pool_prompts()
    budget = experiment.algo.micro_batch_tokens
    sample(policy, prompts[:4], 4, replace(experiment.sampling, max_new_tokens=4), seed=0)
    print("completions  tokens  sample  score  update   ms per generated token")
    for completions, tokens in CASES:
        cfg = replace(experiment.sampling, max_new_tokens=tokens)
        started = time.perf_counter()
        made = sample(policy, prompts[: completions // 4], 4, cfg, seed=1)
        times = [time.perf_counter()]
        batch = batch_of(made, policy.tokenizer.pad_token_id, policy.device)
        score(Scorer(policy.reference, 1.0), batch, tokens=budget)
        times.append(time.perf_counter())
        scorer = Scorer(policy.model, 1.0)
        for rows in micro_batches(batch, None, budget):
            scorer(batch.rows(rows))[0].sum().backward()
        times.append(time.perf_counter())
        spans = [after - before for before, after in zip([started, *times], times, strict=False)]
        shown = "  ".join(f"{span:6.2f}" for span in spans)
        print(f"{completions:11d}  {tokens:6d}  {shown}   {1000 * sum(spans) / (completions * tokens):.1f}", flush=True)


if __name__ == "__main__":
    main()
