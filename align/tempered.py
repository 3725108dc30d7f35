"""The start model at lower temperatures: what sharpening alone does to reward, KL and length.

Gold rises when a model is merely sampled colder, with no preference learned, so learning is claimed above this curve
only. Step s samples at `algo.temperatures[s]`; KL is measured as in every probe, from the distribution that is sampled,
softmax(z / T), to the start model's at temperature 1.
"""

from __future__ import annotations

from align.forward import divergence
from align.probe import TOKENS, Measured, Probe


class Tempered:
    """`ruler` measures; nothing is trained, so its policy is the reference."""

    def __init__(self, ruler: Probe, temperatures: list[float]):
        self.ruler, self.temperatures = ruler, temperatures

    def measure(self, step: int) -> Measured:
        """The probe at the step's temperature. Step 0 is at 1 and everybody's."""
        temperature = self.temperatures[step]
        metrics, samples = self.ruler.measure(0) if step == 0 else self._colder(step, temperature)
        return metrics | {"sampling/temperature": temperature}, samples

    def _colder(self, step: int, temperature: float) -> Measured:
        ruler, policy = self.ruler, self.ruler.policy
        completions = ruler.answers(temperature)
        found = divergence(
            policy.model, policy.reference, ruler.batch(completions), temperature=temperature, tokens=TOKENS
        )
        return ruler.judged(step, completions, found)
