"""What is said while a run goes on."""

from __future__ import annotations

from align.terminal import Terminal


def test_a_training_line_does_not_repeat_what_the_last_probe_measured(capsys):
    terminal = Terminal("title", steps=10)
    terminal.row("probe", 0, {"reward/proxy": 0.5, "kl/exact": 0.0})
    terminal.row("train", 1, {"reward/mean": 0.25, "loss": 0.125})
    said = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert said == [["probe", "0/10", "reward", "0.5", "KL", "0"], ["train", "1/10", "reward", "0.25", "loss", "0.125"]]
