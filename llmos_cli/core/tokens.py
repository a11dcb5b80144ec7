"""Tokens of well-known services: how they begin, and the whole form of those that are found in any text.

`redaction.py` goes by the beginnings, for half a token is none of a log's business; `data/pii.py` by the form, for data are changed where
one is found.
"""

from __future__ import annotations

from typing import NamedTuple


class Token(NamedTuple):
    """`form`, a regular expression: "" where its beginning alone is known."""

    begins: tuple[str, ...]
    form: str


TOKENS = (
    Token(("AKIA", "ASIA"), r"(?<![A-Za-z0-9])A[KS]IA[0-9A-Z]{16}(?![A-Za-z0-9])"),
    Token(("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{36,255}+"),
    Token(("github_pat_",), r"(?<![A-Za-z0-9])github_pat_\w{22,255}+"),
    Token(("glpat-",), r"(?<![A-Za-z0-9])glpat-[\w-]{20,64}+"),
    Token(
        ("xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-"),
        r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,250}+",
    ),
    Token(("sk-",), r"(?<![A-Za-z0-9])sk-[\w-]{20,250}+"),
    Token(
        ("sk_live_", "sk_test_", "rk_live_", "rk_test_"),
        r"(?<![A-Za-z0-9])[rs]k_(?:live|test)_[A-Za-z0-9]{16,250}+",
    ),
    Token(("AIza",), r"(?<![A-Za-z0-9])AIza[\w-]{35}(?![\w-])"),
    Token(("hf_",), r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,64}+"),
    Token(("npm_",), r"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    Token(("eyJ",), r"(?<![\w-])eyJ[\w-]{8,2000}+\.eyJ[\w-]{8,2000}+\.[\w-]{8,1000}+"),
    Token(("pypi-", "xapp-"), ""),
)
