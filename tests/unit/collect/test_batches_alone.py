"""Only few modules may make rows of chunks go: this reads every statement of the program."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import snapfs

SOURCE = Path(snapfs.__file__).parent
TABLES = 'chunk|quarantine|freed'
# batches.py moves rows with the statements of moves.py; sweep.py takes those of packs that are gone, and
# repack.py gives rows a new place.
ALLOWED = {'collect/moves.py', 'collect/sweep.py', 'collect/repack.py'}
CALLERS = {'collect/batches.py'}
TAKING = re.compile(
    rf'\b(?:DELETE\s+FROM|UPDATE(?:\s+OR\s+\w+)?|REPLACE\s+INTO|INSERT\s+OR\s+REPLACE\s+INTO|DROP\s+TABLE'
    rf'(?:\s+IF\s+EXISTS)?|ALTER\s+TABLE)\s+["\[`]?(?:{TABLES})\b',
    re.IGNORECASE,
)
MOVING = re.compile(r'\bINSERT\s+INTO\s+["\[`]?(?:quarantine|freed)\b', re.IGNORECASE)
COMPUTED = re.compile(
    r'\b(?:DELETE\s+FROM|UPDATE|REPLACE\s+INTO|DROP\s+TABLE|ALTER\s+TABLE)\s+\0', re.IGNORECASE
)
# Statements whose table is put in at run time, each looked at: which tables can stand there.
COMPUTED_ALLOWED = {
    'store/registry.py': 1,  # mark_damaged: volume and snapshot
    'store/migrate.py': 1,  # the tables that version 2 changed, none of these three
}


def statements(path: Path) -> list[str]:
    """Every string of a module, with \\0 for what is put in at run time; neighbours are one."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else '\0' for v in node.values]
            found.append(''.join(map(str, parts)))
    return found


def modules() -> list[str]:
    return sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob('*.py'))


@pytest.mark.parametrize('module', modules())
def test_no_other_module_takes_rows_of_chunks(module: str) -> None:
    texts = statements(SOURCE / module)
    if module not in ALLOWED:
        assert [text for text in texts if TAKING.search(text) or MOVING.search(text)] == []
    computed = [text for text in texts if COMPUTED.search(text)]
    if module not in ALLOWED:
        assert len(computed) <= COMPUTED_ALLOWED.get(module, 0), computed


def test_only_batches_calls_the_moves() -> None:
    for module in modules():
        if module in CALLERS or module == 'collect/moves.py':
            continue
        for node in ast.walk(ast.parse((SOURCE / module).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == 'snapfs.collect.moves':
                assert [name.name for name in node.names] == ['Moved'], module
            if isinstance(node, ast.ImportFrom) and node.module == 'snapfs.collect':
                assert 'moves' not in [name.name for name in node.names], module
            if isinstance(node, ast.Import):
                assert 'snapfs.collect.moves' not in [name.name for name in node.names], module


def test_the_modules_allowed_are_still_there_and_the_search_finds_their_statements() -> None:
    assert any(MOVING.search(text) for text in statements(SOURCE / 'collect/moves.py'))
    assert any(TAKING.search(text) for text in statements(SOURCE / 'collect/moves.py'))


@pytest.mark.parametrize(
    'text',
    [
        'DELETE FROM chunk WHERE id = ?', 'delete  from "quarantine"', 'UPDATE OR IGNORE freed SET batch = 1',
        'WITH x AS (SELECT 1) DELETE FROM chunk', 'INSERT OR REPLACE INTO chunk VALUES (1)',
        'DROP TABLE freed', 'INSERT INTO freed SELECT * FROM quarantine', 'ALTER TABLE chunk RENAME TO x',
        'REPLACE INTO chunk',
    ],
)  # fmt: skip
def test_the_search_knows_a_statement_that_takes_rows(text: str) -> None:
    assert TAKING.search(text) or MOVING.search(text)


@pytest.mark.parametrize(
    'text', ['INSERT INTO chunk VALUES (1)', 'SELECT * FROM chunk', 'UPDATE chunked SET a = 1']
)
def test_the_search_knows_a_statement_that_does_not(text: str) -> None:
    assert not TAKING.search(text) and not MOVING.search(text)
