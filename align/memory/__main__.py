"""What an experiment would need, before it is run: `python -m align.memory`. Imports no torch, loads no model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from align.memory.arguments import bound, experiment_of, split
from align.memory.calcs import CALCS
from align.memory.report import sheet
from align.memory.sheets import Sheet
from align.refusals import ConfigError, one_of
from align.report.text import complain

HELP = """\
usage: python -m align.memory [model=NAME] [key=value]...
       python -m align.memory calc=NAME [key=value]...

Without calc=, what this project would hold on each device at its peak: weights, adapters, gradients, optimizer, the
copy it samples from, caches, activations; and, for comparison, the same experiment as full fine-tuning.

  model=NAME            smollm2-135m (default), smollm2-360m, qwen0.5b, qwen1.5b, qwen3-0.6b, gemma3-270m, tiny;
                        dimensions only: qwen7b, qwen72b, llama2-7b, llama3.1-70b, mistral-7b, opt-13b; or
                        a folder with a config.json
  algo=NAME             a file of conf/algo: sft, reward, dpo, grpo, ppo ...
  gpus=N                0 (default): one process on a CPU
  zero=0|1|2|3          what is split over the GPUs: nothing, optimizer, and gradients, and weights
  prompt_tokens=64      length of prompts
  completion_tokens=N   length of completions; default: sampling.max_new_tokens, the most there can be
  gb=N                  memory of a device: says whether it fits
  dtype=auto            bfloat16 (auto) or float32
  any key of align.run  model.lora.rank=64, model.lora=none, algo.micro_batch_tokens=2048, sampling.rows=16 ...

Calculators, each with its keys (lists are comma-separated):

  calc=zero          model | params, gpus           model states by ZeRO stage, and what is sent
  calc=copies        model | params                 how many models an algorithm keeps
  calc=lora          model, rank, targets           size of an adapter, and its states
  calc=kv            model, dtype, length, batch, gb_gpu    caches, grouped heads against all and one, most sequences
  calc=activations   model, batch, length, rank     what training keeps: published formula, logits, and here
  calc=flops         model | params, tokens         operations of forward, training, LoRA
  calc=grpo_signal   p, group                       groups that teach nothing: p^G + (1 - p)^G
  calc=gae           gamma, lam, length             how far a last reward reaches back
  calc=bon           n, scores                      KL of best of n; its gold from scores in the proxy's order
  calc=power         sd, prompts, samples, effect   standard error of a difference, and what it can show
  calc=bt            sharpness, length_bias, flips  what preference labels are worth

docs/memory.md has every formula with its source, and how far estimates were from measured peaks. GB are 10^9 bytes.
Exit codes: 0; 1 when an argument is wrong.

examples: python -m align.memory model=qwen7b algo=ppo gpus=8 zero=3 gb=80
          python -m align.memory calc=zero params=7.5e9 gpus=64
          python -m align.memory calc=kv model=llama3.1-70b length=4096 batch=16
"""


def answer(arguments: Sequence[str]) -> Sheet:
    """Raises ConfigError naming key, value and fix."""
    given = split(arguments)
    name = given.pop("calc", None)
    if name is None:
        return sheet(*experiment_of(given))
    one_of(name, list(CALCS), "calc")
    return CALCS[name](**bound(CALCS[name], given))


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    try:
        answer(arguments).print(Console(highlight=False, width=None if sys.stdout.isatty() else 120))
    except ConfigError as error:
        complain(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
