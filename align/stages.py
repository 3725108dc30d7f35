"""Stages that runs share: the annotator's pools and the reward model. Found by content fingerprint, else made, once.

A stage lies in `runs_root/stages`, named by the hash of everything it depends on, so two runs that need the same thing
find the same thing, and a changed input cannot find a stale one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from align.config import config_hash, plain
from align.data import Data, load
from align.data.annotator import Pool, make_pool, pool_key, pool_prompts, read_pool, write_pool
from align.data.errors import DataError
from align.embedded import ModelError
from align.locks import waiting
from align.models import Policy
from align.records import Prompt
from align.reward_model import RewardModel, load_reward_model
from align.rows import RunError
from align.runs import read
from align.sampling import sample
from align.schema import Experiment, Reward, Sampling
from align.seeds import derive

SHIPPED = Path(__file__).resolve().parent / "assets"
POOL_ROWS = 96  # answers decoded side by side when a pool is sampled


def load_data(experiment: Experiment, policy: Policy) -> Data:
    """The experiment's data; samples the annotator's pool when there is none yet. Raises DataError."""
    data = load(experiment.data, policy.tokenizer, experiment.seed, lambda cfg: obtain_pool(cfg, experiment, policy))
    needs_pairs = experiment.algo.kind in ("preference", "reward") or experiment.reward.learned is not None
    if needs_pairs and not data.train_pairs:
        what = f"algo={experiment.algo.name}" if experiment.algo.kind in ("preference", "reward") else "reward=learned"
        raise DataError(f"data={data.name}: {what} needs preference pairs, and this data has none")
    if experiment.algo.kind == "sft" and not data.demonstrations:
        raise DataError(f"data={data.name}: algo=sft needs demonstrations, and this data has none")
    if experiment.algo.kind != "reward" and not data.heldout_prompts:
        raise DataError(f"data={data.name}: there is no held-out prompt to measure on; give it more prompts")
    return data


def obtain_pool(cfg: Any, experiment: Experiment, policy: Policy) -> Pool:
    """The shipped pool, the cached one, or a new one sampled from the start model."""
    return answered(cfg, experiment, policy, pool_prompts())


def answered(cfg: Any, experiment: Experiment, policy: Policy, asked: Sequence[Prompt]) -> Pool:
    """`cfg.pool.samples` answers of the start model to each prompt: shipped, cached, or sampled and cached."""
    name = f"pool-{pool_key(cfg, policy.fingerprint, asked)[:12]}.jsonl.gz"
    cached = stages_root(experiment) / name
    try:
        there = next((path for path in (SHIPPED / name, cached) if path.is_file()), None)
    except OSError as error:  # another user's
        raise RunError(f"runs_root: {cached.parent} cannot be looked into: {error.strerror or error}") from error
    if there is not None:
        return read_pool(there, asked)
    with _alone(cached, "sampling this pool"):
        if not cached.is_file():
            many = len(asked) * cfg.pool.samples
            print(f"sampling a pool of {many} answers from the start model, once: {cached}", flush=True)
            write_pool(cached, _sampled(cfg, policy, asked))
    return read_pool(cached, asked)


def _sampled(cfg: Any, policy: Policy, asked: Sequence[Prompt]) -> Pool:
    sampling = Sampling(cfg.pool.temperature, None, None, None, cfg.pool.max_new_tokens, POOL_ROWS, "merged", None,
                        None)  # fmt: skip

    def answers(prompts: Sequence[Prompt], samples: int) -> list[tuple[str, int, bool]]:
        got = sample(policy, prompts, samples, sampling, derive(0, "pool"), model=policy.reference)
        return list(zip(got.texts, got.lengths.tolist(), got.finished.tolist(), strict=True))

    return make_pool(cfg, answers, policy.fingerprint, asked)


@contextmanager
def _alone(path: Path, doing: str) -> Iterator[None]:
    """Of several processes that would make `path`, one at a time. Raises RunError where none can, before it is made."""

    def say() -> None:
        print(f"another process is {doing}: waiting for {path}", flush=True)

    with ExitStack() as stack:
        try:
            stack.enter_context(waiting(path.with_suffix(".lock"), say))
        except OSError as error:
            raise RunError(f"runs_root: {path.parent} cannot be written: {error.strerror or error}") from error
        yield


def obtain_reward_model(
    experiment: Experiment, policy: Policy, data: Data, execute: Callable[[Experiment], Path]
) -> RewardModel | None:
    """The learned reward of the experiment, trained first when no finished run of it is found; None if it has none.

    `execute` carries out the experiment that trains it. Raises ModelError when reward.learned.run is not usable.
    """
    learned = experiment.reward.learned
    if learned is None or experiment.algo.kind == "reward":
        return None
    if learned.run is not None:
        path = Path(learned.run).expanduser()
        _check_given(path, experiment)
    else:
        path = stages_root(experiment) / f"reward-{_reward_key(experiment, policy, data)[:12]}"
        _once(replace(experiment, algo=learned.algo, steps=learned.steps, run_dir=str(path),
                      reward=Reward("none", None)), execute)  # fmt: skip
    return load_reward_model(experiment.model, policy.reference, policy.tokenizer, path / "adapter")


def _once(experiment: Experiment, execute: Callable[[Experiment], Path]) -> None:
    """A reward model's run, unless it is finished. Of several runs that need it one trains it and the others wait."""
    path, processes = Path(str(experiment.run_dir)), PartialState()
    with suppress(RunError):  # another process may just be removing it: judged under the lock
        if _earlier(path, experiment) == "finished":
            return
    main = processes.is_main_process
    with _alone(path, "training the reward model") if main else nullcontext():
        processes.wait_for_everyone()  # the others look when the main process holds the lock
        earlier = _earlier(path, experiment)
        processes.wait_for_everyone()  # and all have looked before anything changes
        if earlier == "finished":
            return
        if main:
            if earlier == "of no use":
                shutil.rmtree(path, ignore_errors=True)
            print(f"training the reward model first, once: {path}", flush=True)
        processes.wait_for_everyone()
        execute(experiment)


def _earlier(path: Path, experiment: Experiment) -> Literal["finished", "to go on with", "of no use"]:
    """What an earlier start left. An interrupted one's probe, say, may have been another.

    Raises RunError for one that cannot be told: it is not trained again unasked, since what it scored could not go on.
    """
    try:
        if not (path / "meta.json").is_file():
            return "of no use"
        run = read(path, to_resume=True)
        if run.state == "unknown" and not experiment.resume and (path / "status.json").exists():
            raise RunError(f"{path / 'status.json'} is damaged")
    except (OSError, RunError) as error:
        raise RunError(f"{error}; it is a reward model's: remove {path} to train it again") from error
    if run.state == "finished":
        return "finished"
    same = experiment.resume and config_hash(run.config) == config_hash(plain(experiment))
    return "to go on with" if same else "of no use"


def stages_root(experiment: Experiment) -> Path:
    return Path(experiment.runs_root).expanduser() / "stages"


def _reward_key(experiment: Experiment, policy: Policy, data: Data) -> str:
    assert experiment.reward.learned is not None
    parts = {
        "learned": asdict(experiment.reward.learned),
        "model": _model_settings(asdict(experiment.model)),
        "start": policy.fingerprint,
        "data": data.fingerprint,
        "dtype": str(next(policy.reference.parameters()).dtype),
        "seed": experiment.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _model_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """What was so before there was a choice is left out: reward models older than it are found again."""
    return {key: value for key, value in model.items() if (key, value) != ("quant", None)}


def _check_given(path: Path, experiment: Experiment) -> None:
    try:
        run = read(path)
    except RunError as error:
        raise ModelError(f"reward.learned.run={path}: {error}") from None
    algo, model = run.config.get("algo"), run.config.get("model")
    if not isinstance(algo, dict) or not isinstance(model, dict):
        raise ModelError(f"reward.learned.run={path}: its config.yaml is not the config of a run")
    if algo.get("kind") != "reward":
        raise ModelError(f"reward.learned.run={path}: it is a run of algo={algo.get('name')}, not algo=reward")
    if run.state != "finished":
        raise ModelError(f"reward.learned.run={path}: the run is {run.state}, not finished")
    if _model_settings(model) != _model_settings(asdict(experiment.model)):
        raise ModelError(f"reward.learned.run={path}: it was trained with other model settings "
                         f"({model.get('name')}); they must be the experiment's own")  # fmt: skip
