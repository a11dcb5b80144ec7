"""Personal data: what is masked is not found again, what is none stays as it is, and no text takes long."""

from __future__ import annotations

import ipaddress
import random
import time
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmos_cli.data import pii

PERSONAL = {
    "EMAIL": ["jane.doe+x@mail.example.co.uk", "x_y@z.org", "ÄRGER@bücher.example", "o'neil@a-b.museum"],
    "PHONE": [
        "+49 170 1234567",
        "+49 (0)170 1234567",
        "+14155552671",
        "(415) 555-2671",
        "415.555.2671",
        "0044 20 7946 0958",
        "+49\u202f170\u202f1234567",
        "+４９ １７０ １２３４５６７",
        "(415)\u00a0555-2671",
    ],
    "CARD": [
        "4111 1111 1111 1111",
        "5500-0000-0000-0004",
        "378282246310005",
        "3782 822463 10005",
        "6011000990139424",
        "4111\u00a01111\u00a01111\u00a01111",
        "4111.1111.1111.1111",
        "3782\u2009822463\u200910005",
        "４１１１１１１１１１１１１１１１",
    ],
    "IBAN": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "NO93 8601 1117 947",
        "de89370400440532013000",
        "de89 3704 0044 0532 0130 00",
        "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000",
        "MT84MALT011000012345MTLCAST001S",
    ],
    "IP": [
        "8.8.8.8",
        "192.168.1.20",
        "2001:db8::1",
        "fe80::1ff:fe23:4567:890a",
        "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    ],
    "SSN": ["123-45-6789", "899-01-0001"],
    "SECRET": [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_0123456789abcdefghijABCDEFGHIJ012345",
        "sk-proj-0123456789abcdefghij",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEpAIBAAKCAQEA123456789\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA1234567890abcdef",
    ],
}
NONE = [
    "On 2024-01-02 at 10:00:00 order 1234567890 was 3.14159265358979 of 2^31 = 2147483648, v1.2.3, [1, 2, 3, 4, 5, 6, 7, 8].",
    "x[1::2] + y[::2] std::vector<int> ::new 12:30:45 00:1A:2B:3C:4D:5E def f(self, a@b): @property @a.b(c) 127.0.0.1 0.0.0.0",
    "4111 1111 1111 1112 000-12-3456 987-65-4321 DE00 1704 1144 1532 1130 11 GB82WEST1234569876543 +1 2 3 4 5 6 7 8 9",
    "1700000000000 1700000000000000 0000000000000000 password = os.environ['password'] token: 'aaaaaaaaaaaaaaaa' [EMAIL]",
    "the -----BEGIN PUBLIC KEY----- of a sk-short and ghp_short, 123-45-67890, 1.2.3.4.5, 256.1.1.1",
    "4111.1111.1111.1112 de00370400440532013000 4155552671 0170 1234567 415 555 2671 12\u00a0345\u00a0678 joe (at) x.org",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in PERSONAL.items() for text in texts])
def test_what_is_found(kind: str, text: str) -> None:
    assert [(each.kind, text[each.start : each.end]) for each in pii.find(text)] == [(kind, text)]
    for around in ("see {}.", '"{}", and', "<{}>", "({})", "x: {};", "{}\n{}"):
        assert pii.mask(around.replace("{}", text)) == around.replace("{}", f"[{kind}]")


@pytest.mark.parametrize("text", NONE)
def test_what_is_none_of_it(text: str) -> None:
    assert pii.find(text) == [] and pii.mask(text) is text


def test_of_a_secret_that_is_given_to_a_name_the_value_alone() -> None:
    assert pii.mask("DB_PASSWORD = 'hunter2-is-Long9'  # mine") == "DB_PASSWORD = '[SECRET]'  # mine"
    assert pii.mask('{"api_key": "0123456789abcdef"}') == '{"api_key": "[SECRET]"}'


def test_passwords_that_people_choose_and_what_stands_for_one() -> None:
    for chosen in ("hunter2zz", "hunter2", "tr0ub4dor&3"):
        assert pii.mask(f'password = "{chosen}"') == 'password = "[SECRET]"'
    for other in ("changeme1", "<password1>", "${DB_1}", "{db1}pass", "%(pass1)s", "password123", "abc12", "letters"):
        assert not pii.find(f'password = "{other}"'), other
    assert not pii.find('token = "hunter2zz"')


def test_a_card_and_what_stands_beside_it() -> None:
    assert pii.mask("4111 1111 1111 1111 123") == "[CARD] 123"
    assert pii.mask("1234 4111 1111 1111 1111") == "1234 [CARD]"
    assert pii.find(pii.mask("4111 1111 1111 1111 555-123-4567")) == []


FRAGMENTS = st.one_of(
    st.sampled_from([text for texts in PERSONAL.values() for text in texts] + NONE),
    st.sampled_from(
        [*"0123456789 .-+()@:/_\n[]'\"=,A", "::", "www.", "@a.b", "PRIVATE KEY-----", "password='", "DE89", "00"]
    ),
    st.text(max_size=8),
    st.text("0123456789", max_size=20),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(FRAGMENTS, max_size=12).map("".join))
def test_what_is_masked_is_not_found_again(text: str) -> None:
    found, masked = pii.find(text), pii.mask(text)
    assert pii.find(masked) == [] and pii.mask(masked) == masked
    assert all(one.end <= other.start for one, other in pairwise(found))
    rest, at = "", 0
    for each in found:
        rest, at = f"{rest}{text[at : each.start]}[{each.kind}]", each.end
    assert masked == rest + text[at:]
    if not found:
        assert masked is text


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="@:", exclude_categories=("Nd",)), max_size=200))
def test_text_without_a_digit_or_an_at_sign_stays_byte_for_byte(text: str) -> None:
    assume("PRIVATE KEY" not in text)
    assert pii.mask(text) is text


@settings(deadline=None)
@given(st.text("0123456789", min_size=12, max_size=18))
def test_luhn_is_the_sum_by_hand(digits: str) -> None:
    total = 0
    for place, digit in enumerate(reversed(digits + "0")):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    check = str(-total % 10)
    assert pii.luhn(digits + check)
    assert not any(pii.luhn(digits + str(other)) for other in range(10) if str(other) != check)


@settings(deadline=None)
@given(st.text("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=18, max_size=18))
def test_a_right_iban_is_found_and_one_with_a_changed_sign_is_not(bban: str) -> None:
    check = 98 - pii.mod97(f"DE00{bban}")
    iban = f"DE{check:02}{bban}"
    assert pii.mask(f"to {iban}") == "to [IBAN]"
    wrong = f"DE{check:02}{(int(bban[0], 36) + 1) % 36:d}{bban[1:]}"[:22]
    if pii.mod97(wrong) != 1:
        assert "[IBAN]" not in pii.mask(f"to {wrong}")


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_addresses_of_machines(address: ipaddress.IPv4Address) -> None:
    known = address.is_loopback or address.is_multicast or str(address).startswith(("0.", "255."))
    assert (pii.mask(f"from {address}, ") == "from [IP], ") is not known


HOSTILE = (
    *(
        "a",
        "1",
        "1 ",
        "+1",
        "@",
        "a@",
        "a.",
        "@a.",
        "a@a.",
        "1.",
        "1-",
        "(",
        "::",
        "a:",
        "AA00",
        "AA00 ",
        "sk-",
        " ",
        "0",
    ),
    *(
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN ",
        "eyJ",
        "eyJaaaaaaaaaa.",
        "password='",
        "password=",
        "x@y.co",
        "x@y.co,",
    ),
    *(
        "4111 1111 1111 1111 ",
        "4111 1111 1111 1111 555-123-4567 ",
        "41111111111111115",
        "1.2.3.4 ",
        "1()/-. ",
        "é",
        "[EMAIL]",
    ),
)


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_grows_with_the_text_and_no_faster(unit: str) -> None:
    """Four times as long takes about four times, not sixteen: measured where it is slowest, and twice where something came between."""

    def seconds(length: int) -> float:
        text = (unit * (length // len(unit) + 1))[:length]
        begun = time.process_time()
        pii.mask(text)
        return time.process_time() - begun

    assert any(seconds(32_000) < 9 * max(seconds(8_000), 0.002) for _ in range(4))


def test_chains_of_what_is_seen_only_when_its_neighbour_is_masked_end() -> None:
    random.seed(0)
    parts = [text for texts in PERSONAL.values() for text in texts]
    text = "".join(random.choice(parts) + random.choice(["", " ", "-", ".", "1", "@"]) for _ in range(1500))
    assert pii.find(pii.mask(text)) == []
