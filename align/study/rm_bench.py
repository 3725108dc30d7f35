"""Studies of module `rm_bench`: reward models on a small bench in the manner of RewardBench (reward_models/bench.py).

Chat, hard chat, length-adversarial pairs, refusals and ties are made from answers to validation prompts, whose topics
no training prompt shares; sums are right against wrong. A reward is one of

    head          Bradley-Terry on frozen features, fitted to labels on answers to training prompts
    decorrelated  the same, with length projected out of the features
    logprob       mean log-probability per token under the start model, the form of SimPO's reward before any training
    length        the longer answer is the better one

Step 0 is a coin, right on half of the pairs; step 1 is the reward. A seed draws labels; the pairs are the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np
import torch

from align.data.annotator import Pool, PoolRow, answers_to, label_settings, prompts
from align.data.arithmetic import load as load_sums
from align.data.dataset import digest
from align.data.tokens import encode_completion
from align.features import TOKENS, batch_of_answers, obtain_features
from align.forward import Scorer, score
from align.models import Policy
from align.records import Prompt
from align.report.arms import SeedRun
from align.schema import ArithmeticData
from align.stages import stages_root
from align.study.engine import Task
from align.study.ground import Taught, as_run, each, start, teach
from align.study.judged import Arms
from align.study.settings import Bench
from reward_models import heads
from reward_models.annotator import gold
from reward_models.bench import bench
from reward_models.heads import Array

SUMS = {"task": "sum", "terms": 2, "low": 0, "high": 9, "train": 1}  # as conf/data/arithmetic.yaml
TIES, GAP, COIN = "ties", "hard_gap", 0.5
Pairs = Mapping[str, Sequence[tuple[str, int, int]]]  # category -> prompt id, rows of the better and the worse answer


@dataclass(frozen=True)
class Ground:
    """What all arms stand on. Arrays over rows: every answer that is judged."""

    taught: Taught
    pairs: Pairs
    features: dict[float, Array]  # depth -> [rows, F]
    logprobs: Array
    tokens: Array
    gold: Array  # [prompts, answers] of the validation prompts, the first rows
    finished: Array
    meta: dict[str, str]


def measure(tasks: Sequence[Task]) -> Arms:
    """Raises ConfigError, DataError, ModelError, RewardError."""
    ground = lay(tasks)
    return each(tasks, lambda task: judge(ground, task))


def judge(ground: Ground, task: Task) -> SeedRun:
    rewards = reward(ground, task)
    probes, rows = verdicts(ground.pairs, rewards)
    proxy = rewards[: ground.gold.size].reshape(ground.gold.shape)
    probes[1]["rm/gold_accuracy"] = heads.pair_accuracy(proxy, ground.gold, ground.finished > 0)
    return SeedRun(as_run(task, ground.meta), task.seed, probes, rows)


def lay(tasks: Sequence[Task]) -> Ground:
    """Features are computed where the cache has none."""
    policy, pool = start(tasks)
    e, own = tasks[0].experiment, _of(tasks[0])
    depths, root = sorted({_of(task).depth for task in tasks}), stages_root(e)
    taught = teach(policy, pool, depths, root)
    asked, rows, pairs = judged_rows(policy, pool, taught, own)
    found = obtain_features(policy, rows, asked, depths, root).double().numpy()
    groups = answers_to(pool, prompts("valid"))
    fingerprint = digest([[asdict(row) for row in (*pool.rows, *rows)], taught.scale.digest()])
    return Ground(
        taught,
        pairs,
        {depth: found[:, i] for i, depth in enumerate(depths)},
        answer_logprobs(policy, rows, asked),
        np.array([float(row.tokens) for row in rows]),
        np.array([[gold(answer, taught.scale) for answer in group] for group in groups.values()]),
        np.array([[float(answer.finished) for answer in group] for group in groups.values()]),
        {"start_fingerprint": policy.fingerprint, "data_fingerprint": fingerprint},
    )


def judged_rows(policy: Policy, pool: Pool, taught: Taught, own: Bench) -> tuple[list[Prompt], list[PoolRow], Pairs]:
    """Prompts, the answers to judge, and which of them are pairs."""

    def tokens(text: str) -> int:
        return len(encode_completion(policy.tokenizer, text))

    asked = list(prompts("valid"))
    groups = answers_to(pool, asked)
    rows = [row for row in pool.rows if row.prompt_id in groups]
    place = {(row.prompt_id, row.text): i for i, row in enumerate(rows) if row.finished}

    def row_of(prompt_id: str, text: str) -> int:
        if (prompt_id, text) not in place:
            place[prompt_id, text] = len(rows)
            rows.append(PoolRow(prompt_id, len(rows), text, tokens(text), True))
        return place[prompt_id, text]

    pairs = {
        category: [(one.prompt_id, *(row_of(one.prompt_id, side.text) for side in (one.better, one.worse)))
                   for one in chosen]
        for category, chosen in bench(groups, taught.scale, own.pairs, own.gap, tokens).items()
    }  # fmt: skip
    sums = load_sums(ArithmeticData(kind="arithmetic", name="sums", heldout=own.pairs, **SUMS), 0)  # type: ignore[arg-type]
    pairs["arithmetic"] = [
        (one.prompt.id, row_of(one.prompt.id, one.chosen), row_of(one.prompt.id, one.rejected))
        for one in sums.heldout_pairs
    ]
    return [*asked, *(pair.prompt for pair in sums.heldout_pairs)], rows, pairs


@torch.no_grad()
def answer_logprobs(policy: Policy, rows: Sequence[PoolRow], asked: Sequence[Prompt]) -> Array:
    """[rows] mean log-probability of an answer's tokens, EOS included where it is finished; nats per token"""
    batch = batch_of_answers(policy, rows, asked)
    lengths = batch.completion_mask.sum(-1) - 1  # without the pad that follows each answer
    logprobs, _ = score(Scorer(policy.reference, 1.0), batch, tokens=TOKENS)
    own = torch.arange(logprobs.shape[1], device=logprobs.device) < lengths.unsqueeze(-1)
    return np.asarray((logprobs.double() * own).sum(-1).div(lengths.clamp(min=1)).cpu().numpy())


def reward(ground: Ground, task: Task) -> Array:
    """[rows] what an arm's reward says, up to a constant of the prompt"""
    own, taught = _of(task), ground.taught
    if own.reward == "length":
        return ground.tokens
    if own.reward == "logprob":
        return ground.logprobs
    features, basis = taught.features[own.depth], taught.basis(own.depth, own.rank)
    if own.reward == "decorrelated":
        lengths = [[float(answer.tokens) for answer in group] for group in taught.answers.values()]
        basis = heads.without(basis, features, heads.centred(np.array(lengths)).ravel())
    chosen, rejected = taught.pairs(label_settings(task.experiment.data))
    head = basis @ heads.bradley_terry((features[chosen] - features[rejected]) @ basis, own.ridge)
    return np.asarray(ground.features[own.depth] @ head)


Rows = dict[tuple[str, int], dict[str, float]]


def verdicts(pairs: Pairs, rewards: Array) -> tuple[dict[int, dict[str, float]], dict[int, Rows]]:
    """Probe and rows of step 0, a coin, and of step 1: 1 where the better answer has the higher reward, ties half."""
    margins = {name: {prompt: float(rewards[a] - rewards[b]) for prompt, a, b in of} for name, of in pairs.items()}
    right = {
        name: {prompt: (float(np.sign(margin)) + 1) / 2 for prompt, margin in of.items()}
        for name, of in margins.items() if name != TIES
    }  # fmt: skip
    both = right["chat"].keys() & right["chat_hard"].keys()
    right[GAP] = {prompt: right["chat"][prompt] - right["chat_hard"][prompt] for prompt in sorted(both)}
    coin = {name: dict.fromkeys(of, 0.0 if name == GAP else COIN) for name, of in right.items()}
    probes, rows = dict[int, dict[str, float]](), dict[int, Rows]()
    for step, table in enumerate((coin, right)):
        probes[step] = {f"bench/{name}": fmean(of.values()) for name, of in table.items() if of}
        rows[step] = {}
        for name, of in table.items():
            for prompt, value in of.items():
                rows[step].setdefault((prompt, 0), {})[f"bench_{name}"] = value
    spread = {name: fmean(map(abs, margins[name].values())) for name in (TIES, "chat")}
    probes[1]["bench/ties"] = spread[TIES] / spread["chat"] if spread["chat"] else 0.0
    return probes, rows


def _of(task: Task) -> Bench:
    assert isinstance(task.own, Bench)
    return task.own
