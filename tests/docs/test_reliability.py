"""Every claim of recovery names a test, and the test is there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def claims() -> list[str]:
    """The lines of the page's tables with a column "shown by"."""
    table, found = False, []
    for line in PAGE.read_text().splitlines():
        table = "shown by" in line or (table and line.startswith("|"))
        if table and not line.startswith(("|---", "| what")):
            found.append(line)
    return found


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_there_are_claims() -> None:
    assert len(claims()) >= 20


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim[2:40])
def test_a_claim_of_recovery_names_a_test_that_is_there(claim: str) -> None:
    named = NAMED.findall(claim.rsplit("|", 2)[1])
    assert named
    for file, function in named:
        assert function in functions(TESTS / file), f"{file} has no {function}"
