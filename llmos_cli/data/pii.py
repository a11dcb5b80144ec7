"""Personal data in text: found by form and by check digits, and masked so that what is left has none.

    EMAIL    a@b.example                      CARD     13 to 19 digits of a card network, by Luhn's check digit
    PHONE    +49 170 1234567, (415) 555-2671  IBAN     of the length of its country, by its check digits (mod 97)
    IP       IPv4 and IPv6 addresses          SSN      123-45-6789, of the United States
    SECRET   keys of well-known services, private keys, quoted values of `password` and its like

Blanks may be the narrow and the no-break ones of a typesetter. The groups of a card may have dots between them, the letters of an IBAN be
small ones and the digits of a card or a phone full-width ones: check digits or a `+` tell them from other numbers.

These are rules, not understanding: names and addresses of people are not found, and national phone numbers only where their form
leaves no doubt (with `+` or `00`, or as in North America). A rule that changes changes masked data, so `RULES` counts them, and
the fingerprint of masked data says which it was made by.

Every pattern is bounded, so that time grows with the length of the text, whatever the text, and none matches a bracket, so that
no mask is part of anything. Masking can bring two things side by side that
are one only now, so what stands beside a mask is looked at again, until nothing is found.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llmos_cli.core.tokens import TOKENS

RULES = 3
NEAR = 8192
"""Characters beside a mask that are looked at again: more than any pattern spans."""


@dataclass(frozen=True, order=True)
class Found:
    """`text[start:end]`; `kind` as above."""

    start: int
    end: int
    kind: str


_GAPS = " \u00a0\u2007\u2009\u202f"
"""Blanks within a number: also those at which no line may break."""

Check = Callable[[re.Match[str], str], tuple[int, int] | None]


@dataclass(frozen=True)
class Rule:
    """Where `pattern` matches, `check` says what of it counts (None for nothing); only texts that have one of `needs` are searched."""

    kind: str
    pattern: re.Pattern[str]
    check: Check
    needs: tuple[str, ...] = ()


def find(text: str) -> list[Found]:
    """All of it, in order, none in another; `mask` leaves nothing that this finds."""
    found = _scan(text, 0, len(text))
    fresh = list(found)
    while fresh:
        windows = {window for each in fresh for window in _beside(found, each, len(text))}
        fresh = [new for lo, hi, whole in sorted(windows) for new in _scan(text, lo, hi, *whole)]
        fresh = sorted(set(fresh))
        for new in fresh:
            insort(found, new)
    return found


def mask(text: str) -> str:
    """With `[EMAIL]` for an address, and so on; the text itself where there is nothing to mask."""
    found = find(text)
    return put(text, found) if found else text


def put(text: str, found: Sequence[Found]) -> str:
    """The text with masks in place of what was found in it."""
    pieces, at = list[str](), 0
    for each in found:
        pieces += [text[at : each.start], f"[{each.kind}]"]
        at = each.end
    return "".join([*pieces, text[at:]])


def _beside(found: Sequence[Found], each: Found, length: int) -> Iterator[tuple[int, int, tuple[bool, bool]]]:
    """What lies before and after, up to the next that was found, or `NEAR`; and whether its ends are such borders."""
    place = bisect_left(found, each)
    before = found[place - 1].end if place else 0
    after = found[place + 1].start if place + 1 < len(found) else length
    lo, hi = max(before, each.start - NEAR), min(after, each.end + NEAR)
    if lo < each.start:
        yield lo, each.start, (lo == before, True)
    if each.end < hi:
        yield each.end, hi, (True, hi == after)


def _scan(text: str, lo: int, hi: int, from_border: bool = True, to_border: bool = True) -> list[Found]:
    """What is found in a part as if nothing stood around it; what touches an end that is no border may go on there, and is left."""
    part = text[lo:hi] if (lo, hi) != (0, len(text)) else text
    spans = [
        (start, end, rule.kind)
        for rule, start, end in _matches(part)
        if (from_border or start > 0) and (to_border or end < len(part))
    ]
    return [Found(lo + start, lo + end, kind) for start, end, kind in _joined(sorted(spans))]


def _joined(spans: Sequence[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Where two overlap they are one, called after the first."""
    held: tuple[int, int, str] | None = None
    for start, end, kind in spans:
        if held is None or start >= held[1]:
            if held is not None:
                yield held
            held = start, end, kind
        else:
            held = held[0], max(end, held[1]), held[2]
    if held is not None:
        yield held


def _matches(text: str) -> Iterator[tuple[Rule, int, int]]:
    for rule in WORDED:
        if any(word in text for word in rule.needs):
            yield from ((rule, *span) for span in _of_rule(rule, text, 0, len(text)))
    for run in _RUN.finditer(text):
        for rule in NUMBERED:
            # What follows a run is seen, so that its end is known to be one.
            yield from ((rule, *span) for span in _of_rule(rule, text, max(0, run.start() - 2), run.end() + 2))


def _of_rule(rule: Rule, text: str, at: int, until: int) -> Iterator[tuple[int, int]]:
    """A match that does not count ends nothing: the next one may begin within it."""
    while match := rule.pattern.search(text, at, until):
        if (span := rule.check(match, text)) is not None:
            yield span
        at = max(span[1], match.start() + 1) if span else match.start() + 1


def _all(match: re.Match[str], text: str) -> tuple[int, int]:
    return match.span()


_LOCAL = frozenset(".!#$%&'*+/=?^_`{|}~-")
"""What an address may have before its `@` beside letters and digits."""


def _address(match: re.Match[str], text: str) -> tuple[int, int] | None:
    """The domain was matched, for `@` is rare; what stands before it is as much as an address may have."""
    start = match.start()
    while start and match.start() - start < 64 and (text[start - 1].isalnum() or text[start - 1] in _LOCAL):
        start -= 1
    while start < match.start() and not text[start].isalnum() and text[start] != "_":
        start += 1  # quotes and dashes around it are not its own
    return (start, match.end()) if start < match.start() else None


def _ipv4(match: re.Match[str], text: str) -> tuple[int, int] | None:
    return match.span() if _is_address(match[0], ipaddress.IPv4Address) else None


def _ipv6(match: re.Match[str], text: str) -> tuple[int, int] | None:
    """The first colon was matched. With three groups, or one of four digits first: `1::2` is a slice in many languages."""
    start = match.start()
    while start and match.start() - start < 4 and text[start - 1] in _HEX:
        start -= 1
    if start and (text[start - 1].isalnum() or text[start - 1] in "_:."):
        return None
    whole = _IPV6.match(text, start)
    if whole is None:
        return None
    said = whole[0] if whole[0].endswith("::") else whole[0].rstrip(":")
    groups = [group for group in said.split(":") if group]
    clear = len(groups) >= 3 or (groups and len(groups[0]) == 4)
    return (start, start + len(said)) if clear and _is_address(said, ipaddress.IPv6Address) else None


_HEX = frozenset("0123456789abcdefABCDEF")
_IPV6 = re.compile(r"[0-9A-Fa-f:]{2,39}+(?:(?:\.\d{1,3}){3})?(?!\w)")


def _is_address(text: str, form: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> bool:
    """Of a machine: that of every machine to itself, of all or of none says nothing of anybody."""
    try:
        address = form(text)
    except ValueError:
        return False
    return not (
        address.is_loopback or address.is_unspecified or address.is_multicast or text.startswith(("0.", "255."))
    )


def _card(match: re.Match[str], text: str) -> tuple[int, int] | None:
    """Also without a last group, which may be another number."""
    whole = match[0]
    for said in (whole, whole[: match.start("rest") - match.start()] if match["rest"] else ""):
        digits = plain_digits(re.sub(rf"[{_GAPS}.-]", "", said))
        if _NETWORKS.fullmatch(digits) and len(set(digits)) > 1 and luhn(digits):
            return match.start(), match.start() + len(said)
    return None


_NETWORKS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}|6(?:\d{15}|\d{18})"
)


def plain_digits(digits: str) -> str:
    """Those of other scripts, full-width ones among them, as 0 to 9."""
    return "".join(str(int(digit)) for digit in digits)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _iban(match: re.Match[str], text: str) -> tuple[int, int] | None:
    length = _LENGTHS.get(match[0][:2].upper(), 0)
    compact, end = "", match.start()
    while len(compact) < length and end < match.end():
        compact += text[end] if text[end].isalnum() else ""
        end += 1
    if len(compact) != length or not length or text[end : end + 1].isalnum():
        return None
    return (match.start(), end) if mod97(compact) == 1 else None


def mod97(iban: str) -> int:
    """Of an IBAN without blanks; 1 for one that is right."""
    return int("".join(str(int(sign, 36)) for sign in iban[4:] + iban[:4])) % 97


_COUNTRIES = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18
FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20
LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24
SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
_LENGTHS = {country: int(length) for country, length in re.findall(r"([A-Z]{2})(\d\d)", _COUNTRIES)}
"""Characters of an IBAN, by country: the registry of SWIFT."""


def _international(match: re.Match[str], text: str) -> tuple[int, int] | None:
    """8 to 15 digits, in groups of two or more but for the first, or of one; `00` counts with blanks only."""
    groups = re.findall(r"\d+", match[0].replace("(0)", ""))
    digits = sum(map(len, groups)) - 2 * (match[0][0] == "0")
    sound = 8 <= digits <= 15 and all(len(group) > 1 for group in groups[1:])
    return match.span() if sound and (match[0][0] in "+\uff0b" or len(groups) > 1) else None


def _assigned(match: re.Match[str], text: str) -> tuple[int, int] | None:
    """The value alone, where what it is given to is called a secret and it looks like one: letters and digits, many different ones. People
    choose passwords, and short ones; what stands for one that is yet to be put there is none."""
    named = _NAMED.search(text, max(0, match.start() - 40), match.start())
    value = match["value"]
    mixed = any(sign.isdigit() for sign in value) and any(sign.isalpha() for sign in value)
    if not (named and mixed) or _STANDS_FOR_ONE.fullmatch(value):
        return None
    least, different = (6, 4) if named["chosen"] else (12, 8)
    return match.span("value") if len(value) >= least and len(set(value)) >= different else None


_NAMED = re.compile(r"(?i:api[_-]?key|access[_-]?key|secret|token|(?P<chosen>passw(?:or)?d))[\"']?[ \t]{0,4}\Z")
_STANDS_FOR_ONE = re.compile(
    r"\$.+|<.+>|.*\{.*\}.*|%\(?.+|(?i:(?:change|replace)[_-]?me.{0,9}|(?:your|my|some)[_-].+|(?:passw(?:or)?d|example|dummy|test)[_-]?\d{0,9})"
)
"""A variable, a field of a template, or a word for one."""


def _rule(kind: str, pattern: str, check: Check = _all, needs: tuple[str, ...] = ()) -> Rule:
    return Rule(kind, re.compile(pattern), check, needs)


_DOMAIN = r"@(?:[\w-]{1,63}+\.){1,8}(?:xn--[a-zA-Z0-9-]{2,59}|[^\W\d_]{2,24})(?!\w)"
_PRIVATE_KEY = (
    r"-----BEGIN (?:[A-Z0-9]{1,16}+ ){0,4}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:[^-\[\]]|-(?!----)){1,6000}+-----END [A-Z0-9 ]{1,60}+-----|(?:\s{1,4}+[A-Za-z0-9+/=]{16,256}+){0,100}+)"
)
WORDED = (
    _rule("SECRET", _PRIVATE_KEY, needs=("PRIVATE KEY",)),
    *(_rule("SECRET", token.form, needs=token.begins) for token in TOKENS if token.form),
    _rule(
        "SECRET",
        r"[:=][ \t]{0,4}+[\"'](?P<value>[^\s\"'\[\]]{6,200}+)[\"']",
        _assigned,
        needs=("ey", "EY", "ecret", "ECRET", "oken", "OKEN", "assw", "ASSW"),
    ),
    _rule("EMAIL", _DOMAIN, _address, needs=("@",)),
    _rule("IP", r":(?:[0-9A-Fa-f]{1,4})?:", _ipv6, needs=(":",)),
    _rule(
        "IBAN",
        rf"[A-Z]{{2}}(?<!\w[A-Z]{{2}})\d\d(?:[{_GAPS}-]?[A-Z0-9]){{11,30}}|[a-z]{{2}}(?<!\w[a-z]{{2}})\d\d(?:[{_GAPS}-]?[a-z0-9]{{4}}){{2,7}}(?:[{_GAPS}-]?[a-z0-9]{{1,3}})?",
        _iban,
        needs=tuple("0123456789"),
    ),
)
"""Rules that a word or a sign tells of."""
_RUN = re.compile(rf"\d[\d{_GAPS}.()/-]{{5,}}+")
"""Where digits are close enough for one of the rules of numbers."""
NUMBERED = (
    _rule("IP", r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)", _ipv4),
    _rule("SSN", r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])"),
    _rule(
        "CARD",
        rf"(?<![\w.])(?:\d{{4}}(?P<gap>[{_GAPS}.-]?)\d{{4}}(?P=gap)\d{{4}}(?P=gap)\d{{4}}(?P<rest>(?P=gap)\d{{1,3}})?"
        rf"|\d{{4}}[{_GAPS}.-]\d{{6}}[{_GAPS}.-]\d{{4,5}}|\d{{13,19}})(?!\w|\.\d)",
        _card,
    ),
    _rule(
        "PHONE",
        rf"(?<![\w.+-])(?:[+\uff0b]|00)[1-9\uff11-\uff19](?:[{_GAPS}.()/-]{{0,2}}\d){{6,14}}(?!\w)",
        _international,
    ),
    _rule(
        "PHONE",
        rf"(?<![\w.+-])(?:1[{_GAPS}.-])?(?:\([2-9]\d\d\)[{_GAPS}]?|[2-9]\d\d[.-])\d{{3}}[{_GAPS}.-]\d{{4}}(?![\w-])",
    ),
)
KINDS = tuple(dict.fromkeys(rule.kind for rule in (*WORDED, *NUMBERED)))
