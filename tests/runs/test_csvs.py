from __future__ import annotations

import csv
import io

import pytest

from align.report.csvs import as_csv


@pytest.mark.parametrize("text", ["=1+cmd|calc!A0", "+1", "-x", "@SUM(1)", "\t=1"])
def test_a_text_that_a_spreadsheet_would_calculate_is_text(text):
    (row,) = csv.DictReader(io.StringIO(as_csv([{"arm": text, "x": -1.5}])))
    assert row == {"arm": f"'{text}", "x": "-1.5"}
    assert as_csv([{text: 1}]).startswith(("'", "\"'"))


def test_rows_without_a_column_leave_it_empty_and_no_rows_leave_the_head():
    assert as_csv([{"a": 1.5}, {"b": None}]) == "a,b\n1.5,\n,\n"
    assert as_csv([], ("a", "b")) == "a,b\n"
