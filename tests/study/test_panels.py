"""Figures of exact studies: every point that is drawn is a number of the study's own table, and none is left out."""

from __future__ import annotations

import re

import pytest

from align.exact import Figure, Panel
from align.refusals import ConfigError
from align.study import panels
from align.study.panels import Series, draw, series
from tests.exact.test_exact import EXACT, computed

SQUARES = {"squares": [{"n": n, "square": n * n, "sign": sign} for sign in (-1, 1) for n in (0, 1, 10)]}


def panel(**changes) -> Panel:
    given = {"title": "Squares", "table": "squares", "x": "n", "y": {"square": ""}, "labels": ("n", "n²")}
    return Panel(**given | {"by": "sign", "names": {1: "plus", -1: "minus"}} | changes)


def drawn(chosen: Panel, tables) -> list[list[tuple]]:
    """The points or bars of each series, as matplotlib has them; a bar by its word."""
    shown = series(chosen, tables)
    (axes,) = draw([chosen], [shown]).axes
    marked = [line for line in axes.lines if str(line.get_gid()).startswith("points-")]
    lines = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in marked]
    words = [label.get_text() for label in axes.get_yticklabels()]
    return lines or [
        [(word, bar.get_width()) for word, bar in zip(words, bars, strict=True)] for bars in axes.containers
    ]


@pytest.mark.parametrize("name", EXACT)
def test_every_exact_study_has_a_figure_whose_points_are_its_tables_rows(name):
    found = computed(name)[0]
    assert found.figure is not None and found.figure.caption.endswith(".")
    for one in found.figure.panels:
        rows = [row for row in found.tables[one.table] if one.where.items() <= row.items()]
        words = isinstance(rows[0][one.x], str)
        groups = [[row for row in rows if row[one.by] == value] for value in one.names] if one.by else [rows]
        expected = [
            [(one.names.get(row[one.x], row[one.x]) if words else row[one.x], row[column]) for row in group]
            for column in one.y
            for group in groups
        ]
        assert [sorted(line) for line in drawn(one, found.tables)] == [sorted(line) for line in expected]


@pytest.mark.parametrize("name", EXACT)
def test_titles_and_legends_fit(name):
    """On a panel of 310 points: 48 characters of a bold title, and some room for the axes beside the words of bars."""
    for one in computed(name)[0].figure.panels:
        assert len(one.title) <= panels.TITLE_CHARS and max(map(len, one.labels)) <= 50
        assert all(len(said) <= 30 for said in one.names.values())


def test_what_is_drawn_by_hand():
    def of(study: str, number: int) -> list[list[tuple]]:
        found = computed(study)[0]
        return drawn(found.figure.panels[number], found.tables)

    assert of("grpo_bias", 1)[0][:2] == [("GRPO", pytest.approx(4)), ("Dr. GRPO", pytest.approx(1))]
    four, *_, sixteen_drawn_again = of("dapo_tricks", 0)
    assert dict(four)[0.1] == pytest.approx(0.1**4 + 0.9**4)
    assert dict(sixteen_drawn_again)[0.02] == pytest.approx((0.02**16 + 0.98**16) ** 3)
    none, half, true = of("gae_lambda", 0)
    assert [line[0] for line in (none, half, true)] == [(0.0, -1.0), (0.0, -0.5), (0.0, 0.0)]


def test_a_line_for_each_name_in_its_order_and_dashes_for_the_second_column():
    shown = series(panel(y={"square": "", "n": ", plain"}, names={1: "plus", -1: "minus"}), SQUARES)
    assert [(one.label, one.style, one.dashed) for one in shown] == [
        ("plus", 0, False), ("minus", 1, False), ("plus, plain", 0, True), ("minus, plain", 1, True),
    ]  # fmt: skip
    assert shown[1] == Series("minus", 1, False, (0, 1, 10), (0, 1, 100))
    only = series(panel(by="", names={}, where={"sign": 1}, y={"square": "a", "n": "b"}), SQUARES)
    assert [(one.label, one.style, one.dashed) for one in only] == [("a", 0, False), ("b", 1, False)]


def test_words_make_bars_in_the_order_of_their_names_and_nameless_rows_stay_out():
    tables = {"t": [{"of": "x", "v": 1.0}, {"of": "other", "v": 9.0}, {"of": "y", "v": 2.0}]}
    bars = panel(table="t", x="of", y={"v": ""}, by="", names={"y": "Why", "x": "Ex"})
    assert drawn(bars, tables) == [[("Why", 2.0), ("Ex", 1.0)]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": "cubes"}, "table 'cubes' has no column 'n'; 'cubes' has no rows, the tables are squares"),
        ({"x": "m"}, "table 'squares' has no column 'm'; 'squares' has n, square, sign"),
        ({"names": {2: "two"}}, "no rows for 'two'"),
        ({"log": "x"}, "log='x', but 'plus' has 0 on x; leave x out"),
    ],
)
def test_a_figure_of_what_is_not_there_is_refused(changes, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        series(panel(**changes), SQUARES)


def test_equal_tables_give_equal_bytes_without_a_date_and_every_point_says_its_numbers(tmp_path):
    figure = Figure("Two.", (panel(), panel(where={"n": 10})))
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append((panels.save(figure, SQUARES, tmp_path / name),
                     *[(tmp_path / name / f"figure.{kind}").read_bytes() for kind in ("svg", "png")]))  # fmt: skip
    assert made[0] == made[1]
    svg = made[0][1].decode()
    assert "date" not in svg and svg.count("<title>") == 8 and "<title>minus\nn 10\nn² 100</title>" in svg
    ids = re.findall(r'\bid="([^"]*)"', "".join(made[0][0]))
    assert len(made[0][0]) == 2 and len(ids) == len(set(ids))  # in one page
