"""Probe keys as tables and figures show them, and their values per seed and per prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from align.report.arms import BEST_OF_N, Arm
from align.report.inference import Difference, Values, difference, seed_difference
from align.report.text import MISSING, number


@dataclass(frozen=True)
class Metric:
    """A probe key as tables and figures show it."""

    key: str
    title: str
    unit: str = ""
    decimals: int = 3
    percent: bool = False  # a fraction, shown times 100
    sample_field: str = ""  # where samples.jsonl has it per completion; "" where it does not
    outcome: bool = False  # what the project asks about: its differences are a family of their own (claims.py)

    def show(self, value: float | None, *, sign: bool = False) -> str:
        """With `sign` a difference: of percentages, in percentage points."""
        if value is None:
            return MISSING
        unit = (" pp" if sign else "%") if self.percent else ""
        return self._bare(value, sign) + unit

    def interval(self, low: float | None, high: float | None, *, sign: bool = True) -> str:
        """[low, high], or nothing where there is none."""
        if low is None or high is None:
            return ""
        if self.percent:  # what a share, or a difference of shares, cannot be is cut off
            low, high = max(low, -1.0 if sign else 0.0), min(high, 1.0)
        return f"[{self._bare(low, sign)}, {self._bare(high, sign)}]"

    def _bare(self, value: float, sign: bool) -> str:
        if self.percent:
            return number(100 * value, 1, sign=sign)
        if value and abs(value) < 0.5 * 10**-self.decimals:  # not 0.00: a small KL is not none
            return f"{value:{'+' if sign else ''}.1g}".replace("-", "−")
        return number(value, self.decimals, sign=sign)

    @property
    def axis(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


PROXY = Metric("reward/proxy", "proxy reward", sample_field="reward", outcome=True)
GOLD = Metric("reward/gold", "gold reward", sample_field="gold", outcome=True)
LENGTH = Metric("length/mean", "length", "tokens", 1, sample_field="tokens", outcome=True)
KL_EXACT = Metric(
    "kl/exact", "KL to the reference, exact", "nats per sequence", 2, sample_field="kl_exact", outcome=True
)
KL_K1 = Metric("kl/k1", "KL to the reference, k1", "nats per sequence", 2, sample_field="kl", outcome=True)
KL_BOUND = Metric("kl/bound", "KL to the reference, analytic bound", "nats per sequence", 2)
TRUNCATED = Metric("length/truncated", "truncated", percent=True, sample_field="truncated")
WIN = Metric("win/gold", "win rate", percent=True, sample_field="win")
WIN_LC = Metric("win/gold_lc", "win rate at equal length", percent=True)
SAMPLED = Metric("accuracy/sampled", "sampled accuracy", percent=True, sample_field="correct", outcome=True)
GREEDY = Metric("accuracy/greedy", "greedy accuracy", percent=True)
REP3 = Metric("text/rep3", "repeated trigrams", percent=True, sample_field="rep3")
DISTINCT2 = Metric("text/distinct2", "distinct bigrams", "share of all")
SELF_BLEU = Metric("text/self_bleu", "self-BLEU", "0 to 1")
ENTROPY = Metric("policy/entropy", "entropy", "nats per token")
CHOSEN = Metric("pref/chosen_logprob", "log-ratio of held-out answers", "nats per sequence", 2)
REJECTED = Metric("pref/rejected_logprob", "log-ratio of held-out answers", "nats per sequence", 2)
TRAIN_CHOSEN = Metric("pref/train_chosen_logprob", "log-ratio of chosen training answers", "nats per sequence", 2)
TRAIN_REJECTED = Metric("pref/train_rejected_logprob", "log-ratio of rejected training answers", "nats per sequence", 2)
TRAIN_MARGIN = Metric("pref/train_margin", "margin of training pairs", "nats per sequence", 2)
RM_ACCURACY = Metric("rm/accuracy", "reward model accuracy", "held-out pairs", percent=True)
RM_GOLD = Metric("rm/gold_accuracy", "reward accuracy against gold", "held-out pairs", percent=True)
RM_POLICY = Metric("rm/policy_accuracy", "reward accuracy on the policy's answers", percent=True,
                   sample_field="policy_accuracy")  # fmt: skip
RM_DROP = Metric("rm/policy_drop", "reward accuracy lost from the start's answers to the policy's", percent=True,
                 sample_field="policy_drop")  # fmt: skip
BON_A = Metric("bon/a", "a of the gain d (a - b d), d the root of the KL", "gold per root nat", sample_field="bon_a")
BON_B = Metric("bon/b", "b of the gain d (a - b d), d the root of the KL", "gold per nat", sample_field="bon_b")
COPY = Metric("copy/logprob", "log-probability of the sentence", "nats per token", 2, sample_field="copy_logprob")
BENCH_CHAT = Metric("bench/chat", "right on chat pairs", percent=True, sample_field="bench_chat")
BENCH_HARD = Metric("bench/chat_hard", "right on hard chat pairs", percent=True, sample_field="bench_chat_hard")
BENCH_GAP = Metric("bench/hard_gap", "chat less hard chat", percent=True, sample_field="bench_hard_gap")
BENCH_LENGTH = Metric("bench/length", "right where better is shorter", percent=True, sample_field="bench_length")
BENCH_REFUSAL = Metric("bench/refusal", "right on refusals", percent=True, sample_field="bench_refusal")
BENCH_MATH = Metric("bench/arithmetic", "right on sums", percent=True, sample_field="bench_arithmetic")
STEP = Metric("step", "optimizer step", decimals=0)
TOKENS = Metric("gen_tokens", "generated tokens", decimals=0)
SECONDS = Metric("seconds", "wall clock", "seconds", 0)

CHANGES = (PROXY, GOLD, LENGTH)
ENDS = (TRUNCATED, WIN, WIN_LC, SAMPLED, GREEDY, RM_ACCURACY)  # shown as they are at the end, after the KL


def kl_metric(arms: Sequence[Arm]) -> Metric:
    """The KL that all arms with any KL log: exact if they can, k1 otherwise. One page never mixes the two.

    Best-of-n has neither: its KL is known only through its bound.
    """
    measured = [arm for arm in arms if arm.kind != BEST_OF_N and (arm.logs(KL_EXACT.key) or arm.logs(KL_K1.key))]
    return KL_EXACT if all(arm.logs(KL_EXACT.key) for arm in measured) else KL_K1


def kl_of(arm: Arm, kl: Metric) -> Metric:
    return KL_BOUND if arm.kind == BEST_OF_N else kl


def same_reward(arms: Iterable[Arm]) -> bool:
    """Whether the proxy reward is one quantity in all of them."""
    configs = [{key: value for key, value in arm.config.items() if key.startswith("reward.")} for arm in arms]
    return all(config == configs[0] for config in configs)


def primary(arms: Sequence[Arm]) -> Metric | None:
    """What "better" is judged by: gold; without a gold score the verifier; else the reward, if it is one for all."""
    candidates = (GOLD, SAMPLED, *((PROXY,) if same_reward(arms) else ()))
    return next((metric for metric in candidates if arms and all(arm.logs(metric.key) for arm in arms)), None)


def seed_values(arm: Arm, step: int | None, metric: Metric) -> dict[str, float]:
    """Seed -> the probe's value, of the seeds that reached the arm's end."""
    if step is None:
        return {}
    return {str(run.seed): value for run in arm.at_end if (value := run.value(step, metric.key)) is not None}


def prompt_values(arm: Arm, step: int | None, metric: Metric) -> Values:
    """Seed -> prompt id -> mean over the completions of that prompt, of the seeds that reached the arm's end.

    Empty unless every one of them has the field: a difference must not be taken over other seeds than the table says.
    """
    if step is None or not metric.sample_field:
        return {}
    found = {str(run.seed): prompt_means(run.samples.get(step, {}), metric.sample_field) for run in arm.at_end}
    return found if all(found.values()) else {}


def prompt_means(rows: Mapping[tuple[str, int], Mapping[str, Any]], field: str) -> dict[str, float]:
    """Completions of one prompt are not independent of each other, so the prompt is the unit."""
    values: dict[str, list[float]] = {}
    for (prompt, _), row in rows.items():
        if (value := sample_value(row, field)) is not None:
            values.setdefault(prompt, []).append(value)
    return {prompt: fmean(group) for prompt, group in values.items()}


def sample_value(row: Mapping[str, Any], field: str) -> float | None:
    """A number of one completion; `truncated` is what `finished` is not."""
    value = row.get(field)
    if field == "truncated" and isinstance(row.get("finished"), bool):
        value = not row["finished"]
    return float(value) if isinstance(value, int | float) else None


def change(arm: Arm, metric: Metric) -> Difference | None:
    """The arm's end minus its step 0. None where an end is missing."""
    return None if arm.end == 0 else _between((arm, arm.end), (arm, 0), metric)


def end_difference(arm: Arm, other: Arm, metric: Metric) -> Difference | None:
    """`arm` at its end minus `other` at its own, or both at `ends`."""
    end, others = ends(arm, other)
    return _between((arm, end), (other, others), metric)


def ends(arm: Arm, other: Arm) -> tuple[int | None, int | None]:
    """Where two arms are compared: each at its end, or where one was cut off at the last step that both have probed."""
    if not (arm.cut_off or other.cut_off):
        return arm.end, other.end
    common = max(set(arm.steps) & set(other.steps), default=None)
    return common, common


def _between(a: tuple[Arm, int | None], b: tuple[Arm, int | None], metric: Metric) -> Difference | None:
    """By prompts and seeds where both sides have samples of every seed, by the seeds' probe values otherwise."""
    prompts = prompt_values(*a, metric), prompt_values(*b, metric)
    return difference(*prompts) if all(prompts) else seed_difference(seed_values(*a, metric), seed_values(*b, metric))
