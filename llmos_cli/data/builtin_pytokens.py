"""Python source whose tokens are to be tagged with their part in the grammar: 16 classes, most of which need context."""

from __future__ import annotations

import ast
import hashlib
import io
import keyword
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from llmos_cli.data import stdlib
from llmos_cli.data.cache import json_entry
from llmos_cli.data.fingerprint import split_of
from llmos_cli.data.rows import Rows

FRACTIONS = {"test": 0.05, "validation": 0.05}
LONGEST_TOKEN, LONGEST_LINE, ROW = 24, 64, 40
"""Characters of a token (strings are abbreviated); tokens of a line (longer ones are tables, not grammar); tokens after which
a row, which is some consecutive lines, ends."""
LEFT_OUT = ("encodings/", "distutils/")
"""Tables rather than grammar; gone from newer Pythons."""
Place = tuple[int, int]
"""Line from 1, column in characters from 0."""
Line = tuple[list[str], list[str]]


def load(cache: Path) -> dict[str, Rows]:
    """(tokens, tags) of a few lines each of the packages' files, in splits by the SHA-256 of the path; a line is in one split only."""
    sources = [(path, text) for path, text in stdlib.files() if "/" in path and not path.startswith(LEFT_OUT)]
    rows = json_entry(cache, "pytokens", ["pytokens/3", stdlib.identity(sources)], lambda: _all_rows(sources))
    return {
        split: Rows(
            {
                "tokens": [words for name, words, _ in rows if name == split],
                "tags": [tags for name, _, tags in rows if name == split],
            }
        )
        for split in ("train", "validation", "test")
    }


def _all_rows(sources: list[tuple[str, str]]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(split, words, tags): held-out files first, so that training never sees a line that is judged."""
    seen: set[tuple[str, ...]] = set()
    named = [(split_of(hashlib.sha256(path.encode()).digest(), FRACTIONS), text) for path, text in sources]
    for name in ("test", "validation", "train"):
        for text in (text for split, text in named if split == name):
            for words, tags in _joined(_new(tagged_lines(text), seen)):
                yield name, words, tags


def _new(lines: Iterator[Line], seen: set[tuple[str, ...]]) -> Iterator[Line]:
    for words, tags in lines:
        if tuple(words) not in seen:
            seen.add(tuple(words))
            yield words, tags


def _joined(lines: Iterator[Line]) -> Iterator[Line]:
    """Consecutive lines as rows: a line alone is a third of a batch's width, and padding costs what tokens do."""
    words: list[str] = []
    tags: list[str] = []
    for more_words, more_tags in lines:
        words, tags = words + more_words, tags + more_tags
        if len(words) >= ROW:
            yield words, tags
            words, tags = [], []
    if words:
        yield words, tags


def tagged_lines(source: str) -> Iterator[Line]:
    """Each logical line of a source file as its tokens and their tags, comments and layout left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources are not the user's concern
        roles = _Roles(source)
    words: list[str] = []
    tags: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            if 1 < len(words) <= LONGEST_LINE:
                yield words, tags
            words, tags = [], []
        elif token.string.strip() and token.type != tokenize.COMMENT:
            tags.append(_tag(token, words, roles))
            words.append(token.string[:LONGEST_TOKEN])


def _tag(token: tokenize.TokenInfo, words: list[str], roles: _Roles) -> str:
    """The tag of a token after `words` on its line."""
    before = words[-1] if words else ""
    if token.type == tokenize.NUMBER:
        return "number"
    if token.type == tokenize.OP:
        return "operator"
    if token.type != tokenize.NAME:
        return "string"
    if words[:1] in (["import"], ["from"]) and not keyword.iskeyword(token.string):
        return "import"
    if before in ("def", "class"):
        return "function" if before == "def" else "class"
    if token.string in ("None", "True", "False"):
        return "constant"
    if keyword.iskeyword(token.string):
        return "keyword"
    return roles.names.get(token.start, "keyword" if keyword.issoftkeyword(token.string) else "variable")


class _Roles(ast.NodeVisitor):
    """The tag of each name by its place, as the syntax tree tells it: the outermost role that says more than `variable` wins."""

    def __init__(self, source: str) -> None:
        self.lines = source.split("\n")
        self.names: dict[Place, str] = {}
        self.role = ""
        self.visit(ast.parse(source))

    def _place(self, line: int, column_in_bytes: int) -> Place:
        text = self.lines[line - 1]
        return line, column_in_bytes if text.isascii() else len(text.encode()[:column_in_bytes].decode())

    def _mark(self, node: ast.expr | ast.arg | ast.keyword, role: str) -> None:
        self.names[self._place(node.lineno, node.col_offset)] = role

    def _within(self, role: str, *nodes: ast.AST | None) -> None:
        outer, self.role = self.role, self.role or role
        for node in nodes:
            if node is not None:
                self.visit(node)
        self.role = outer

    def visit_Name(self, node: ast.Name) -> None:
        self._mark(node, self.role or ("variable" if isinstance(node.ctx, ast.Load) else "target"))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._attribute(node, self.role or "attribute")

    def _attribute(self, node: ast.Attribute, role: str) -> None:
        line, end = self._place(node.end_lineno or 0, node.end_col_offset or 0)
        self.names[line, end - len(node.attr)] = role
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if self.role:  # a call within a type is part of it
            self.generic_visit(node)
            return
        if isinstance(node.func, ast.Name):
            self._mark(node.func, "call")
        elif isinstance(node.func, ast.Attribute):
            self._attribute(node.func, "method")
        else:
            self.visit(node.func)
        for child in (*node.args, *node.keywords):
            self.visit(child)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg is not None:
            self._mark(node, "argument")
        self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        self._mark(node, "parameter")
        self._within("type", node.annotation)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        self._within("type", node.annotation)
        self._within("", node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._within("type", node.returns)
        self._within("", *node.decorator_list, node.args, *node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._within("type", *node.bases)
        self._within("", *node.decorator_list, *node.keywords, *node.body)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._within("type", node.type)
        self._within("", *node.body)
