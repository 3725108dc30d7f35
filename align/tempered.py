"""The start model at lower temperatures or with its tail cut off: what sharpening alone does to reward, KL and length.

Gold rises when a model is merely sampled colder, with no preference learned, so learning is claimed above this curve
only. Step s samples at `algo.temperatures[s]`, then keeps the tokens of `algo.top_ps[s]`; KL is measured as in every
probe, from the distribution that is sampled to the start model's as it is.
"""

from __future__ import annotations

from align.forward import Sharpening, divergence
from align.probe import TOKENS, Measured, Probe


class Tempered:
    """`ruler` measures; nothing is trained, so its policy is the reference."""

    def __init__(self, ruler: Probe, temperatures: list[float], top_ps: list[float] | None):
        self.ruler, self.temperatures, self.top_ps = ruler, temperatures, top_ps

    def measure(self, step: int) -> Measured:
        """The probe at the step's temperature and top-p. Step 0 is at 1 and everybody's."""
        own = {"sampling/temperature": self.temperatures[step]}
        if self.top_ps is not None:
            own["sampling/top_p"] = self.top_ps[step]
        metrics, samples = self.ruler.measure(0) if step == 0 else self._sharper(step)
        return metrics | own, samples

    def _sharper(self, step: int) -> Measured:
        ruler, policy = self.ruler, self.ruler.policy
        top_p = None if self.top_ps is None or self.top_ps[step] == 1 else self.top_ps[step]  # 1 cuts nothing off
        sampled = Sharpening(self.temperatures[step], top_p)
        completions = ruler.answers(sampled)
        found = divergence(policy.model, policy.reference, ruler.batch(completions), ruler.halving, sampled, TOKENS)
        return ruler.judged(step, completions, found)
