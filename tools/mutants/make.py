"""Making mutants of a source file: the operators of mutmut, some for SQL in strings, and steps left out.
Pure."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst._nodes.internal import CodegenState
from libcst.metadata import MetadataWrapper, WhitespaceInclusivePositionProvider
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

TARGETS = (
    'snapfs/collect',
    'snapfs/store/chunks.py',
    'snapfs/store/horizon.py',
    'snapfs/volume/engine.py',
    'snapfs/service/collecting.py',
)
# Of these files only some functions have to do with deletion; all functions of the others do.
ONLY = {'snapfs/volume/engine.py': frozenset({'horizon', 'commit'})}
# What a careless hand writes instead, in SQL.
SQL = (
    (r' = ', ' != '),
    (r' != ', ' = '),
    (r' <= ', ' < '),
    (r' < ', ' <= '),
    (r' >= ', ' > '),
    (r' > ', ' >= '),
    (r'\bAND\b', 'OR'),
    (r'\bOR\b', 'AND'),
    (r'\bIS NOT\b', 'IS'),
    (r'\bIS (?!NOT)', 'IS NOT '),
    (r'\bNOT IN\b', 'IN'),
    (r'(?<!NOT )\bIN\b', 'NOT IN'),
    (r'\bWHERE\b', 'WHERE true OR'),
    (r'\bWHERE\b', 'WHERE false AND'),
    (r'\bmax\(', 'min('),
    (r'\bmin\(', 'max('),
    (r'\bDO NOTHING\b', 'DO UPDATE SET pack = excluded.pack'),
    (r'\bUNION ALL SELECT \w+ FROM \w+', ''),
    (r' \+ 1\b', ''),
)
_IS_SQL = re.compile(r'\b(SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|JOIN|AND|UNION|VALUES)\b')


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake: characters `start` to `end` of the file at `path` (relative to the checkout) become
    `text`."""

    path: str
    line: int
    start: int
    end: int
    text: str
    was: str
    operators: str  # 'standard', 'sql' or 'left-out'
    reached_by: tuple[int, int]  # executed when one of these lines is: first and last of the statement's head

    @property
    def name(self) -> str:
        """What identifies it as long as the file does not change."""
        return f'{self.path}:{self.line}:{self.start}:{self.was!r} -> {self.text!r}'

    def apply(self, source: str) -> str:
        """Return the source with the mistake in it."""
        assert source[self.start : self.end] == self.was
        return source[: self.start] + self.text + source[self.end :]


class _Visitor(MutationVisitor):
    """mutmut's, with decorated functions: what is made here needs no trampolines."""

    METADATA_DEPENDENCIES = (  # type: ignore[assignment]
        *MutationVisitor.METADATA_DEPENDENCIES,
        WhitespaceInclusivePositionProvider,
    )

    def __init__(self) -> None:
        super().__init__(mutation_operators, IgnoredCode(set(), set(), set()))
        self.spans: list[tuple[cst.CSTNode, cst.CSTNode, tuple[tuple[int, int], tuple[int, int]]]] = []

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef):
            return False
        return bool(super()._skip_node_and_children(node))

    def _create_mutations(self, node: cst.CSTNode) -> None:
        before = len(self.mutations)
        super()._create_mutations(node)
        made = self.mutations[before:]
        place = self.get_metadata(WhitespaceInclusivePositionProvider, node, None) if made else None
        if place is None:
            return
        span = ((place.start.line, place.start.column), (place.end.line, place.end.column))
        self.spans += [(node, one.mutated_node, span) for one in made]


def source_files(root: Path) -> list[str]:
    """Return the paths of all targets, relative to the checkout."""
    found = []
    for target in TARGETS:
        path = root / target
        found += sorted(path.glob('*.py')) if path.is_dir() else [path]
    return [str(path.relative_to(root)) for path in found]


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Return all mutants of a file, in order, each once."""
    heads = _Heads(source)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = _lines_of(source, ONLY[path]) if path in ONLY else None
    made: dict[tuple[int, int, str], Mutant] = {}
    sets = {
        'standard': _standard(source, starts, heads),
        'sql': _sql(source, starts),
        'left-out': _left_out(source, starts),
    }
    for operators, found in sets.items():
        for at, start, end, text in found:
            if text == source[start:end] or (lines is not None and at not in lines):
                continue
            mutant = Mutant(path, at, start, end, text, source[start:end], operators, heads.of(at))
            made.setdefault((start, end, text), mutant)
    return sorted(made.values(), key=lambda one: (one.start, one.end, one.text))


def _lines_of(source: str, names: frozenset[str]) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in names:
            found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def _standard(source: str, starts: list[int], heads: _Heads) -> Iterator[tuple[int, int, int, str]]:
    visitor = _Visitor()
    module = MetadataWrapper(cst.parse_module(source)).visit(visitor)
    lines = source.splitlines()
    for node, mutated, ((line, column), (end_line, end_column)) in visitor.spans:
        start, end = starts[line - 1] + column, starts[end_line - 1] + end_column
        first = lines[heads.of(line)[0] - 1]
        indent = first[: len(first) - len(first.lstrip())]
        was, text = _code(module, node, indent), _code(module, mutated, indent)
        if source[start:end] != was:
            # A statement carries its lines' indentation and comments, which the position leaves out.
            at = source.find(was, max(0, start - len(was)), end + len(was))
            assert at >= 0, f'{source[start:end]!r} is not {was!r}'
            start, end = at, at + len(was)
        yield line, start, end, text


def _code(module: cst.Module, node: cst.CSTNode, indent: str) -> str:
    """The text of a node as it stands in a block of this indentation."""
    state = CodegenState(module.default_indent, module.default_newline, indent_tokens=[indent])
    node._codegen(state)
    return ''.join(state.tokens)


def _sql(source: str, starts: list[int]) -> Iterator[tuple[int, int, int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.STRING or not _IS_SQL.search(token.string) or '"""' in token.string:
            continue
        first = starts[token.start[0] - 1] + token.start[1]
        for pattern, text in SQL:
            for match in re.finditer(pattern, token.string):
                yield token.start[0], first + match.start(), first + match.end(), text


def _left_out(source: str, starts: list[int]) -> Iterator[tuple[int, int, int, str]]:
    """A guard or a step left out: a call, an assertion or a raise becomes nothing, a condition always or
    never holds."""

    def place(line: int, column: int) -> int:
        text = source[starts[line - 1] : starts[line]] if line < len(starts) else source[starts[line - 1] :]
        return starts[line - 1] + len(text.encode()[:column].decode())

    for node in ast.walk(ast.parse(source)):
        parts: list[tuple[ast.stmt | ast.expr, str]] = []
        kept = (ast.Constant, ast.Yield, ast.YieldFrom)
        is_call = isinstance(node, ast.Expr) and not isinstance(node.value, kept)
        if isinstance(node, ast.Assert | ast.Raise | ast.Expr) and (
            is_call or not isinstance(node, ast.Expr)
        ):
            parts = [(node, 'pass')]
        elif isinstance(node, ast.If):
            parts = [(node.test, 'False'), (node.test, 'True')]
        for part, text in parts:
            assert part.end_lineno is not None
            assert part.end_col_offset is not None
            start = place(part.lineno, part.col_offset)
            yield part.lineno, start, place(part.end_lineno, part.end_col_offset), text


class _Heads:
    """Which lines tell that a line is executed: those of the head of the innermost statement that it is
    in."""

    def __init__(self, source: str) -> None:
        self._of: dict[int, tuple[int, int]] = {}
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.stmt):
                continue
            first, last = node.lineno, node.end_lineno or node.lineno
            body = getattr(node, 'body', None)
            if body and isinstance(body, list):
                last = max(first, body[0].lineno - 1)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    first = min([first, *(one.lineno for one in node.decorator_list)])
            for line in range(first, last + 1):
                known = self._of.get(line)
                if known is None or last - first < known[1] - known[0]:
                    self._of[line] = (first, last)

    def of(self, line: int) -> tuple[int, int]:
        """Return first and last line of that head."""
        return self._of.get(line, (line, line))
