# SPDX-License-Identifier: Apache-2.0
"""Files for the outside: the citation, the security policy and the issue templates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from aapt_fast.cli.options import make_parser

ROOT = Path(__file__).parents[1]
TEMPLATES = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]


def test_the_citation_has_the_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert citation["version"] == version and citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["references"][0]["url"] in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", TEMPLATES, ids=[path.stem for path in TEMPLATES])
def test_issue_templates_ask_for_the_report_of_doctor(path: Path) -> None:
    template = yaml.safe_load(path.read_text())
    fields = {field["id"]: field for field in template["body"]}
    assert template["name"] and template["description"] and len(fields) == len(template["body"])
    assert "`aapt-fast doctor --json`" in fields["doctor"]["attributes"]["label"]
    assert fields["doctor"]["validations"]["required"] is True
    for command in re.findall(r"`aapt-fast ([^`]*)`", path.read_text()):
        make_parser().parse_args(command.split())


def test_what_the_security_policy_says_of_files_is_so() -> None:
    """Every torch.load names weights_only=True; otherwise nothing is unpickled but what ranks of one job say."""
    assert "weights_only=True" in (ROOT / "SECURITY.md").read_text()
    sources = {path: path.read_text() for path in (ROOT / "python").rglob("*.py")}
    loads = [(path, call) for path, text in sources.items() for call in re.findall(r"torch\.load\([^\n]*", text)]
    assert loads and [call for call in loads if "weights_only=True" not in call[1]] == []
    unpickled = [path.name for path, text in sources.items() if re.search(r"\bpickle\.loads?\(", text)]
    assert unpickled == ["transport.py"] and "pickle" in (ROOT / "SECURITY.md").read_text()
