# SPDX-License-Identifier: Apache-2.0
"""The schema of documents of measurements: what fits it, what is refused, and the page that describes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aapt_fast.profiling.document import Document, head, result
from aapt_fast.profiling.schema import FIELDS, HEAD, SCHEMA, SECTIONS, problems, read_document
from aapt_fast.profiling.timing import Sample

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "bench" / "results").glob("*.json"))
OLDER = "aapt_fast.bench/1"
PAGE = ROOT / "docs/reference/measurement-documents.md"


def document() -> dict:
    made = Document(head("pytest"))
    made.add("results", result("a", Sample((1.0, 2.0), None, "wall clock"), "ours"))
    made.fail("b", "theirs", "no GPU")
    made.note_clocks("before a")
    return made.content


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_documents_fit(path):
    content = json.loads(path.read_text())
    if path.name.startswith("cpu-2026-11-20-"):  # bench/README.md names them
        assert content["schema"] == OLDER
    else:
        assert problems(content) == []


def test_there_are_committed_documents_of_this_schema():
    assert sum(json.loads(path.read_text())["schema"] == SCHEMA for path in RESULTS) >= 4


def test_a_new_document_fits_and_is_read_again(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document()))
    assert problems(document()) == [] and read_document(path)["results"] == document()["results"]


@pytest.mark.parametrize(
    ("section", "field", "value", "problem"),
    [
        ("results", "repetitions", 2.5, "results[0] repetitions: expected int, got float"),
        ("results", "tflops", "fast", "results[0] tflops: expected int or float or null, got str"),
        ("results", "noise", True, "results[0] noise: expected int or float, got bool"),
        ("results", "cold_l2", 1, "results[0] cold_l2: expected bool or null, got int"),
        ("failures", "reason", None, "failures[0] reason: expected str, got NoneType"),
    ],
)
def test_a_value_of_another_type_is_a_problem(section, field, value, problem):
    content = document()
    content[section][0][field] = value
    assert problems(content) == [problem]


def test_lists_and_entries_of_another_kind_are_problems():
    assert problems({**document(), "results": {}}) == ["results: expected a list, got dict"]
    assert problems({**document(), "clocks": [3]}) == ["clocks[0]: expected an object, got int"]
    assert problems({**document(), "gpu": "H100"}) == ["gpu: expected dict or null, got str"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "expected a document of measurements of schema 1, got no JSON: Expecting property name"),
        ("\x00", "got no JSON"),
        ("[]", "expected schema 1, got JSON of another kind: list"),
        ("{}", "expected schema 1, got JSON without a schema"),
        ('{"schema": 2}', "expected schema 1, got 2"),
        ('{"schema": true}', "expected schema 1, got True"),
        (f'{{"schema": "{OLDER}"}}', f"expected schema 1, got {OLDER}"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, error):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: ") as refused:
        read_document(path)
    assert error in str(refused.value)


def test_bytes_that_are_no_text_are_refused_by_name(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"x\.json: expected a document of measurements of schema 1, got no JSON"):
        read_document(path)


def test_the_page_has_every_field_and_no_other():
    rows = re.findall(r"^\| (head|\w+) \| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    fields = [("head", name) for name in HEAD] + [(section, name) for section in FIELDS for name in FIELDS[section]]
    assert sorted(rows) == sorted(fields)
    assert f"schema {SCHEMA}" in PAGE.read_text() and all(f"`{section}`" in PAGE.read_text() for section in SECTIONS)
