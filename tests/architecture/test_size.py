"""Functions of at most 50 lines, files of at most 300."""

from __future__ import annotations

import ast

from tests.architecture.test_imports import FILES, ROOT


def test_files_and_functions_stay_small():
    too_long = []
    for file in FILES:
        text = file.read_text()
        lines = text.count("\n")
        if lines > 300:
            too_long.append(f"{file.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 50:
                too_long.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert too_long == []
