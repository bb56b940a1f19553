# SPDX-License-Identifier: Apache-2.0
"""`py.typed` is true for users of pyright: examples of the documentation have types without a mistake.

The package itself is checked by mypy, in `make lint`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PAGES = ("README.md", "docs/tutorial/first-stream.md", "docs/how-to/branch-and-save.md")


def pyright(folder: Path) -> list[dict[str, Any]]:
    """What pyright has to say about the programs in a folder."""
    settings = {"pythonVersion": "3.10", "extraPaths": [str(REPOSITORY / "python")]}  # it does not follow import hooks
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert found.stdout, found.stderr
    return json.loads(found.stdout)["generalDiagnostics"]


def test_examples_have_no_mistake(tmp_path: Path) -> None:
    for page in PAGES:
        examples = re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
        assert examples
        (tmp_path / f"{Path(page).stem}.py").write_text("\n".join(examples))
    assert pyright(tmp_path) == []


def test_types_are_known_and_mistakes_found(tmp_path: Path) -> None:
    (tmp_path / "mistake.py").write_text(
        "import aapt_fast\n\nmodel = aapt_fast.StreamModel.from_pretrained('mini-person')\n"
        "session = aapt_fast.StreamSession(model, aapt_fast.load_gallery('mini-person')[0], seed=0)\n"
        "reveal_type(session.step(None))\nsession.stpe(None)\n"
    )
    known, mistake = pyright(tmp_path)
    assert known["message"] == 'Type of "session.step(None)" is "Tensor"'
    assert mistake["severity"] == "error" and 'Cannot access attribute "stpe"' in mistake["message"]
