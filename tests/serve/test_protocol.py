# SPDX-License-Identifier: Apache-2.0
"""Messages, errors and headers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from aapt_fast.serve import protocol
from aapt_fast.serve.protocol import BadMessage, Header, read_message

PAGE = Path(__file__).parents[2] / "docs/reference/protocol.md"


@pytest.mark.parametrize(
    ("text", "argument", "expected", "got"),
    [
        ("xx", "message", "JSON", "a text that is none: expected value at line 1 column 1"),
        ("[]", "message", "an object", "[]"),
        ("{}", "type", "the type of a message", "none"),
        ('{"type":"pause","request":1,"stream":"0"}', "stream", "a valid integer", "'0'"),
        ('{"type":"pause","request":1,"stream":65536}', "stream", "less than 65536", "65536"),
        ('{"type":"pause","request":1,"stream":0,"x":1}', "x", "no such field", "1"),
        ('{"type":"pause","request":1}', "stream", "a value", "none"),
        ('{"type":"open","request":1,"first":{}}', "first", "one of gallery, image and replay", "none"),
        ('{"type":"ping","time":1e999}', "time", "a finite number", "inf"),
        (
            '{"type":"control","stream":0,"id":1,"track":"pose","value":[[NaN]]}',
            "value",
            "a name, numbers, rows of numbers, or null",
            "[[nan]]",
        ),
    ],
)
def test_errors_name_argument_expected_and_got(text, argument, expected, got):
    with pytest.raises(BadMessage) as raised:
        read_message(text)
    error = raised.value.error
    assert (error["argument"], error["expected"], error["got"]) == (argument, expected, got)
    assert error["message"] == f"{argument}: expected {expected}, got {got}"


def test_an_error_names_the_message_that_it_answers():
    with pytest.raises(BadMessage) as raised:
        read_message('{"type":"control","stream":3,"id":9,"track":"pose","value":{}}')
    assert (raised.value.error["stream"], raised.value.error["id"]) == (3, 9)
    with pytest.raises(BadMessage) as raised:
        read_message('{"type":"open","request":true}')
    assert "request" not in raised.value.error


def test_a_header_has_16_little_endian_bytes():
    header = Header(frame=0x01020304, time=5, control=6, stream=0x0708, codec=2, flags=3)
    packed = header.pack()
    assert packed == bytes([4, 3, 2, 1, 5, 0, 0, 0, 6, 0, 0, 0, 8, 7, 2, 3])
    assert Header.unpack(packed + b"picture") == header
    assert Header.unpack(Header(2**32 + 1, 2**33, 0, 0, 1).pack()).frame == 1  # after 5.6 years
    with pytest.raises(ValueError, match=r"^data: expected 16 bytes or more, got 3"):
        Header.unpack(b"abc")


def test_refusals_come_from_the_sentences_of_this_package():
    error = protocol.refusal_of(ValueError("control: expected shape [4, 3], got [2]"))
    assert (error["argument"], error["expected"], error["got"]) == ("control", "shape [4, 3]", "[2]")
    assert protocol.refusal_of(RuntimeError("no memory"))["message"] == "no memory"


def test_the_page_about_the_protocol_names_every_message_and_code():
    page = PAGE.read_text()
    union = get_args(get_args(protocol.ClientMessage)[0])
    types = [name for message in union for name in get_args(message.model_fields["type"].annotation)]
    assert len(types) == 14 and [name for name in types if f"`{name}`" not in page] == []
    fields = {field for message in union for field in message.model_fields} - {"type"}
    assert [field for field in fields if f"`{field}`" not in page] == []
    codes = {4400, 4401, 4403, 4408, 4409, 4429, 1001}
    assert codes <= set(map(int, re.findall(r"^\| (\d{4}) \|", page, re.MULTILINE)))
