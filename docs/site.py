# SPDX-License-Identifier: Apache-2.0
"""Hooks of mkdocs: pages that lie outside of docs/ are part of the site, and links keep leading to them.

The files stay where GitHub shows them. Links to other files, such as sources, become plain text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[1]
PATTERNS = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "bench/README.md", "csrc/*/README.md", "python/**/CARD.md")
"""Pages outside of docs/."""

INSIDE, OUTSIDE = "docs/", "repository/"
"""The folder of the documentation in the repository, and that of the other pages in the site."""

ORDER = ("tutorial", "how-to", "reference", "explanation", "results", "repository")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside of docs/."""
    for pattern in PATTERNS:
        for path in sorted(REPOSITORY.glob(pattern)):
            name = OUTSIDE + path.relative_to(REPOSITORY).as_posix()
            files.append(File.generated(config, name, content=path.read_text()))
    return files


def on_nav(nav: Any, config: Any, files: Files) -> Any:
    """Put the sections in the order of the index."""
    places = {name.replace("-", " "): place for place, name in enumerate(ORDER)}
    nav.items.sort(key=lambda item: places.get(item.title.lower(), -1) if item.is_section else -1)
    return nav


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point the links of a page at pages of the site."""
    return rewritten(markdown, page.file.src_uri, set(files.src_uris))


def rewritten(markdown: str, name: str, known: set[str]) -> str:
    """Rewrite the links of the page `name` of the site, which were made for the repository.

    Args:
        markdown: text of the page.
        name: path of the page in the site.
        known: paths of all files of the site.
    """
    here = name.removeprefix(OUTSIDE) if name.startswith(OUTSIDE) else INSIDE + name

    def point(link: re.Match[str]) -> str:
        exclamation, text, target, anchor = link.groups()
        there = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        site = there.removeprefix(INSIDE) if there.startswith(INSIDE) else OUTSIDE + there
        if site in known:
            return f"{exclamation}[{text}]({os.path.relpath(site, posixpath.dirname(name) or '.')}{anchor or ''})"
        if (REPOSITORY / there).exists():
            return text
        return link[0]  # broken: mkdocs says so

    return LINK.sub(point, markdown)
