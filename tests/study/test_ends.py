"""The figure of every arm shows the numbers of the runs, and no more arms than have them."""

from __future__ import annotations

import html
import re

from align.study import ends, forest, page
from align.study.verdict import examine
from tests.study.fakes import ENDS, arms_of, study_of
from tests.study.test_verdict import plan_of


def drawn(tmp_path, **changes):
    study = study_of(**changes)
    found = examine(study, arms_of(tmp_path / "runs", study, ENDS))
    return study, found, ends.figures_of(study, found)


def test_an_arms_row_is_its_mean_its_seeds_and_its_own_start(tmp_path):
    _, found, (length, gold) = drawn(tmp_path)
    assert [row.arm.label for row in length.rows] == ["plain", "treated", "placebo", "cured", "costly"]
    treated = length.rows[1]
    assert treated.seeds == (59.75, 60.0, 60.25, 59.75, 60.0)  # as tests/study/fakes.py writes them
    assert treated.end.mean == sum(treated.seeds) / 5 == 59.95
    assert treated.start is not None and treated.start.mean == 40.0
    assert (gold.name, gold.rows[4].end.mean < gold.rows[3].end.mean) == ("arms-cost", True)
    assert [row.end.mean for row in gold.rows][0] == found.arms["plain"].seeds[0].value(4, "reward/gold")


def test_what_decides_and_costs_the_same_is_drawn_once(tmp_path):
    cure = {"arm": "treated", "removes": 0.5, "cost": {"metric": "length/mean", "margin": 0.5}}
    assert [one.name for one in drawn(tmp_path, cure=cure)[2]] == ["arms"]


def test_the_file_names_every_arm_and_a_marker_tells_its_interval(tmp_path):
    study, found, figures = drawn(tmp_path)
    made = [(one, ends.save(one, tmp_path)) for one in figures]
    svg = (tmp_path / "arms.svg").read_text("utf-8")
    titles = [html.unescape(title) for title in re.findall(r"<title>([^<]*)</title>", svg)]
    assert [title.splitlines()[0] for title in titles] == ["plain", "treated", "placebo", "cured", "costly"]
    interval = figures[0].rows[1].end
    assert titles[1].splitlines()[1] == f"60.0 [{interval.low:.1f}, {interval.high:.1f}]"
    assert (tmp_path / "arms.png").stat().st_size > 0 and (tmp_path / "arms-cost.svg").is_file()
    shown = page.render_arms(plan_of(study, tmp_path), found, [], made)
    assert shown.count('<figure id="arms') == 2 and 'href="arms-cost.png"' in shown


def test_numbers_on_the_axis_of_a_verdict_keep_apart(tmp_path):
    """A margin of 4 beside an effect of 80 tokens: its numbers would lie on the zero."""
    study = study_of()
    found = examine(study, arms_of(tmp_path / "far", study, ENDS | {"costly": (140.0, -1.0, 2.0)}))
    beside = [found.primary, *found.controls, *(one.removal for one in found.cured)]
    shown = forest.forest(beside, [0] * len(beside))
    places = sorted(place for place, _ in shown.ticks)
    assert "0.0" in [label for _, label in shown.ticks] and "+4.0" not in [label for _, label in shown.ticks]
    assert all(b - a >= forest.APART for a, b in zip(places, places[1:], strict=False))


def test_what_seeds_do_not_move_has_no_interval_over_them(tmp_path):
    study = study_of()
    found = examine(study, arms_of(tmp_path / "still", study, ENDS))
    (one, _) = ends.figures_of(study, found)
    assert [row.varies for row in one.rows] == [False, True, True, True, True]  # MOVES["plain"] is 0
    ends.save(one, tmp_path)
    svg = (tmp_path / "arms.svg").read_text("utf-8")
    assert "<title>plain\n40.0</title>" in svg


def test_a_contrasts_band_is_its_own_margin(tmp_path):
    study = study_of()
    found = examine(study, arms_of(tmp_path / "bands", study, ENDS))
    primary, removal = found.primary, found.cured[0].removal
    shown = forest.forest([primary, removal], [0, 1])
    widths = [row.margin[1] - row.margin[0] for row in shown.rows]
    assert primary.verdict.margin == 4.0 and abs(widths[1] / widths[0] - removal.verdict.margin / 4.0) < 0.01
