"""The page of faults that others have met: each has its report, and tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cases.md").read_text()
CASES = {
    title[:3]: text
    for title, text in re.findall(r"^### (D\d\d: .*)\n((?:(?!^#).*\n)*)", PAGE, re.MULTILINE)
}
NUMBERS = [f"D{number:02}" for number in range(1, 26)]
TEST = re.compile(r"^- `(tests/[\w/]+\.py)::(test_\w+)`$", re.MULTILINE)


@cache
def functions_of(file: str) -> dict[str, str | None]:
    """The functions of a module at its top level, with what each says of itself."""
    return {
        node.name: ast.get_docstring(node)
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_case_is_there_once() -> None:
    assert sorted(CASES) == NUMBERS


@pytest.mark.parametrize("number", NUMBERS)
def test_a_case_has_reports_an_answer_and_tests_that_exist(number: str) -> None:
    text = CASES[number]
    assert "\nReported: " in text or "\nReported:\n" in text
    assert re.search(r"\]\(https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+\)", text)
    assert "\nHere: " in text
    tests = TEST.findall(text)
    assert len(tests) == len(re.findall(r"^- ", text, re.MULTILINE)) > 0
    for file, name in tests:
        assert name in functions_of(file), f"{file} has no {name}"


def test_tests_that_call_a_case_by_its_number_stand_on_its_page() -> None:
    """In either direction the way is found: a test that says "D07: ..." is one of D07's."""
    calls = {
        (str(file.relative_to(ROOT)), name, number)
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for name, said in functions_of(str(file.relative_to(ROOT))).items()
        for number in re.findall(r"^D\d\d(?=:)", said or "")
    }
    assert len(calls) > 20
    missing = [call for call in calls if (call[0], call[1]) not in TEST.findall(CASES[call[2]])]
    assert missing == []
