"""TRL's side of a row: its trainers as they are, driven by `train()`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
import trl
from peft import TaskType
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LogitsProcessor,
    LogitsProcessorList,
    TrainerCallback,
)
from transformers.generation.continuous_batching import ContinuousBatchingManager

from align.bench.inputs import Inputs, bench_reward, inputs
from align.bench.settings import Stock, Work
from align.bench.stamps import Stamps
from align.device import resolve_device
from align.models import load_tokenizer, locate, lora_config
from align.schema import Experiment
from align.trainers.trl_data import demonstration_rows, pair_rows, reward_rows

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Timer(TrainerCallback):
    def __init__(self, stamps: Stamps):
        self.stamps = stamps

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.stamps.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.stamps.step()


class ForcedLengths(LogitsProcessor):
    """Row i says EOS at its recorded length and never before."""

    def __init__(self, lengths: Sequence[int], eos: Sequence[int]):
        self.lengths, self.eos, self.t = torch.tensor(lengths), list(eos), 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.t += 1
        scores[:, self.eos] = -torch.inf
        ends = self.lengths.to(scores.device) == self.t
        scores[ends, self.eos[0]] = torch.finfo(scores.dtype).max
        return scores


def measure(experiment: Experiment, work: Work, stamps: Stamps) -> tuple[Any, Inputs]:
    """Train; `stamps` gets the time of every step. Returns the base's config and what was worked on."""
    assert work.trl is not None
    tokenizer = load_tokenizer(experiment.model)
    given = inputs(work, tokenizer)
    trainer = TRAINERS[work.trl.trainer](experiment, work.trl, tokenizer, given, stamps)
    trainer.add_callback(Timer(stamps))
    trainer.train()
    return trainer.model.config, given


def _base(experiment: Experiment, stock: Stock, tokenizer: Any) -> Any:
    """As transformers loads it: `align.models.load_base` would put this project's layers into it."""
    where = locate(experiment.model.path)
    model = AutoModelForCausalLM.from_pretrained(
        where, dtype=DTYPES[stock.dtype], local_files_only=True, trust_remote_code=False
    )
    model = model.to(resolve_device(experiment.device))
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def _args(experiment: Experiment, stock: Stock, **own: Any) -> dict[str, Any]:
    """Of TRL's config: what every row has, what its kind has, and the settings found best for the row."""
    import tempfile

    optimizer = experiment.algo.optimizer
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": experiment.steps,
        "learning_rate": optimizer.lr,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "use_cpu": resolve_device(experiment.device).type == "cpu",
        "gradient_checkpointing": False,  # it would compute activations twice
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "seed": experiment.seed,
        **own,
        **stock.args,
    }


def _adapter(experiment: Experiment, task: TaskType) -> Any:
    assert experiment.model.lora is not None
    return lora_config(experiment.model.lora, task)


def _rollout(trainer: Any, config: Any) -> Any:
    def build(experiment: Experiment, stock: Stock, tokenizer: Any, given: Inputs, stamps: Stamps) -> Any:
        algo, lengths = experiment.algo, [length for _, group in given.groups for length in group]
        args = config(**_args(
            experiment, stock, num_generations=algo.group_size, generation_batch_size=len(lengths),
            max_completion_length=experiment.sampling.max_new_tokens, beta=algo.kl.coef,
            temperature=experiment.sampling.temperature, top_p=1.0, top_k=0, shuffle_dataset=False,
        ))  # fmt: skip
        rows = [{"prompt": tokenizer.decode(ids)} for ids in given.prompt_ids]
        built = trainer(
            model=_base(experiment, stock, tokenizer), args=args, processing_class=tokenizer,
            reward_funcs=lambda completion_ids, **_: bench_reward(completion_ids),
            train_dataset=datasets.Dataset.from_list(rows), peft_config=_adapter(experiment, TaskType.CAUSAL_LM),
        )  # fmt: skip
        if args.use_transformers_continuous_batching:
            force_requests(lengths)
        else:
            force_generate(built.model, lengths, built.eos_token_ids, [len(ids) for ids in given.prompt_ids])
        return built

    return build


def force_generate(model: Any, lengths: Sequence[int], eos: Sequence[int], prompts: Sequence[int]) -> None:
    """`generate` of this model ends row i at its recorded length. Rows are prompt-major."""
    free = model.generate
    each = [count for count in prompts for _ in range(len(lengths) // len(prompts))]

    def generate(*args: Any, **options: Any) -> Any:
        found = options["attention_mask"].sum(-1).tolist()
        assert found == each, f"TRL's prompts have {found} tokens, ours {each}"
        return free(*args, **options, logits_processor=LogitsProcessorList([ForcedLengths(lengths, eos)]))

    model.generate = generate


def force_requests(lengths: Sequence[int]) -> None:
    """The same for continuous batching, which takes a limit for each request; requests are numbered in row order."""
    free = ContinuousBatchingManager.add_request

    def add_request(self: Any, *, request_id: str, **options: Any) -> Any:
        limit = lengths[int(request_id.removeprefix("req_")) % len(lengths)]
        return free(self, request_id=request_id, **options | {"max_new_tokens": limit, "eos_token_id": -1})

    ContinuousBatchingManager.add_request = add_request


def _supervised(trainer: Any, config: Any, make_rows: Any, **own: Any) -> Any:
    """On rows of token ids, the same as this project's side; those of a step sorted by length, so that less is padded.
    A reference that is computed beforehand is paid for by the steps: each row is trained on once."""

    class Prepared(trainer):  # type: ignore[misc]
        stamps: Stamps

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *given: Any) -> Any:
            started = time.perf_counter()
            rows = super()._precompute_ref_logps(*given)
            self.stamps.outside = time.perf_counter() - started
            return rows

    def build(experiment: Experiment, stock: Stock, tokenizer: Any, given: Inputs, stamps: Stamps) -> Any:
        rows = sorted(make_rows(tokenizer, given), key=_size, reverse=True) * experiment.steps
        extra = {"model": _base(experiment, stock, tokenizer), "peft_config": _adapter(experiment, TaskType.CAUSAL_LM)}
        if trainer is trl.RewardTrainer:
            extra = _classifier(experiment, stock, tokenizer)
        args = config(**_args(experiment, stock, max_length=None, train_sampling_strategy="sequential", **own))
        Prepared.stamps = stamps  # it precomputes in its constructor
        return Prepared(
            args=args, processing_class=tokenizer, train_dataset=datasets.Dataset.from_list(rows), **extra
        )  # fmt: skip

    return build


def _classifier(experiment: Experiment, stock: Stock, tokenizer: Any) -> dict[str, Any]:
    model = AutoModelForSequenceClassification.from_pretrained(
        locate(experiment.model.path),
        num_labels=1,
        dtype=DTYPES[stock.dtype],
        local_files_only=True,
        trust_remote_code=False,
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return {"model": model, "peft_config": _adapter(experiment, TaskType.SEQ_CLS)}


def _size(row: Mapping[str, Any]) -> int:
    return sum(len(value) for value in row.values())


TRAINERS = {
    "grpo": _rollout(trl.GRPOTrainer, trl.GRPOConfig),
    "rloo": _rollout(trl.RLOOTrainer, trl.RLOOConfig),
    "dpo": _supervised(trl.DPOTrainer, trl.DPOConfig, lambda tokenizer, given: pair_rows(tokenizer, given.pairs)),
    "sft": _supervised(
        trl.SFTTrainer, trl.SFTConfig, lambda tokenizer, given: demonstration_rows(tokenizer, given.demonstrations),
        dataset_kwargs={"skip_prepare_dataset": True},
    ),
    "reward": _supervised(
        trl.RewardTrainer, trl.RewardConfig, lambda tokenizer, given: reward_rows(tokenizer, given.pairs)
    ),
}  # fmt: skip
