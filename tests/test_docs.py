# SPDX-License-Identifier: Apache-2.0
"""The documentation is true: links lead somewhere, every page is in the index, the tutorial runs, names exist."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import aapt_fast
from aapt_fast.cli.options import COMMANDS, make_parser
from aapt_fast.serve.settings import Limits
from aapt_fast.training import ablate
from aapt_fast.training.coin import coin_model

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [path.relative_to(ROOT).as_posix() for path in sorted(DOCS.rglob("*.md"))]
CARDS = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("python/aapt_fast/assets/*/CARD.md"))]


def links(page: str) -> list[Path]:
    """The files that a page links to."""
    path = ROOT / page
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    return [(path.parent / target).resolve() for target in targets]


@pytest.mark.parametrize("page", [*PAGES, *CARDS, "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"])
def test_links_lead_to_files(page):
    assert [target for target in links(page) if not target.exists()] == []


def test_every_page_is_in_the_index():
    indexed = {target for target in links("docs/README.md") if target.is_relative_to(DOCS)}
    assert indexed == {ROOT / page for page in PAGES} - {DOCS / "README.md"}


def run_page(page: str) -> dict:
    """Run the Python blocks of a page, one after the other; returns their names."""
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        exec(compile(block, page, "exec"), scope)
    return scope


def test_the_page_about_saved_sessions_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = run_page("how-to/branch-and-save.md")
    assert [len(scope[name]) for name in ("videos", "other", "repeated")] == [8, 3, 6]
    for mine, again in ((scope["videos"][:3], scope["repeated"][:3]), (scope["other"], scope["repeated"][3:])):
        assert all(torch.equal(one, two) for one, two in zip(mine, again, strict=True))


def test_the_page_about_the_server_runs():
    scope = run_page("how-to/serve.md")
    assert [picture.size for picture in scope["pictures"]] == [(96, 96)] * 24 and scope["obeyed"]
    assert scope["other"].number == 8 and scope["other"].is_discontinuous and len(scope["replay"]) > 1000


def test_the_page_about_the_server_has_the_defaults():
    page = (DOCS / "how-to/serve.md").read_text()
    for name, value in Limits().to_dict().items():
        found = re.search(rf"^\|[^|]*`{name}`[^|]*\| ([^|]*) \|", page, re.MULTILINE)
        assert found is not None and str(round(value)) in found[1].split(", "), name


def test_the_page_about_decoding_runs(tmp_path, monkeypatch):
    """The messages that it explains are those of the package."""
    monkeypatch.chdir(tmp_path)
    scope = run_page("how-to/decode-a-stream.md")
    assert [len(frames) for frames in scope["video"]] == [1] + [4] * 6 and Path("decoded.gif").stat().st_size > 1000
    assert scope["one"].shape == (1, 3, 4, 96, 96) and not torch.equal(scope["one"], scope["two"])
    assert all((mine == his.numpy()).all() for mine, his in zip(scope["shown"], scope["video"][-2:], strict=True))
    source = (ROOT / "python/aapt_fast/models/vae/video_stream.py").read_text()
    page = (DOCS / "how-to/decode-a-stream.md").read_text()
    said = re.findall(r"^\| `latents: expected ([a-z, ]+)`", page, re.MULTILINE)
    assert len(said) == 4 and [words for words in said if words not in source] == []


def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = run_page("tutorial/first-stream.md")
    assert scope["frames"].shape == scope["one_future"].shape == (4, 96, 96, 3)
    assert [video.shape for video in scope["videos"]] == [(4, 96, 96, 3)] * 2
    assert scope["what_if"].steps == scope["session"].steps + 1


def test_the_tutorial_about_training_runs(tmp_path, monkeypatch):
    """With a smaller model and two steps of each stage."""
    monkeypatch.chdir(tmp_path)
    model = coin_model(width=16, heads=1, layers=1)
    for name in ("DIFFUSION", "CONSISTENCY", "REFINED"):
        config = getattr(ablate, name)
        monkeypatch.setattr(ablate, name, dataclasses.replace(config, model=model, steps=2, batch=2))
    scope = run_page("tutorial/aapt-on-a-coin.md")
    assert scope["batch"].clean.shape == (2, 4, 4, 8, 8)
    assert sorted(path.name for path in Path("runs/tutorial").iterdir()) == [
        "1-diffusion",
        "2-consistency",
        "3-refinement",
    ]
    with Image.open("coin.png") as picture:
        assert picture.size == (8 * 10 * 6, 4 * 10 * 6) and len(picture.getcolors()) > 10


def test_the_command_line_page_names_every_command():
    page = (DOCS / "reference/command-line.md").read_text()
    assert set(re.findall(r"aapt-fast ([a-z]+)", page)) == set(COMMANDS)


def test_environment_variables_are_read_somewhere():
    ours, _ = (DOCS / "reference/environment-variables.md").read_text().split("Other programs")
    variables = re.findall(r"^\| `([A-Z_]+)` \|", ours, re.MULTILINE)
    files = [*ROOT.glob("cmake/*"), ROOT / "pyproject.toml", ROOT / "CMakeLists.txt", ROOT / "Makefile"]
    sources = "\n".join(path.read_text() for path in [*files, *ROOT.glob("python/**/*.py")])
    assert "AAPT_KERNELS" in variables and [name for name in variables if name not in sources] == []


def test_the_notice_names_files_that_exist():
    """Each claim about where a fact stands, and everything that a build compiles in."""
    notice = (ROOT / "NOTICE").read_text()
    places = set(re.findall(r"(?:models|ops|integrations|compat|profiling)(?:/\w+)+\.py", notice))
    assert places and [place for place in places if not (ROOT / "python/aapt_fast" / place).exists()] == []
    assert all(name in notice for name in ("pybind11", "CUTLASS", "CUDA runtime"))
    assert 'license-files = ["LICENSE", "NOTICE"]' in (ROOT / "pyproject.toml").read_text()


def test_figures_are_drawn_from_the_results_that_are_there(monkeypatch):
    """docs/figures/*.svg: `python docs/figures.py` writes them anew."""
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "figures", figures)
    spec.loader.exec_module(figures)
    drawn = {f"{name}.svg": draw() for name, draw in figures.FIGURES.items()}
    assert drawn == {path.name: path.read_text() for path in (DOCS / "figures").iterdir()}
    pages = "\n".join((ROOT / page).read_text() for page in PAGES)
    assert [name for name in drawn if f"figures/{name}" not in pages] == []


# ---- every snippet is run, or checked as far as it can be without a GPU ----

RUN_BY = {
    "README.md": "tests/test_readme.py",
    "docs/how-to/add-a-decoder.md": "tests/models/vae/test_decoder_from_outside.py",
    "docs/how-to/add-a-preset.md": "tests/models/aapt/test_presets.py",
    "docs/how-to/add-a-sampler.md": "tests/streaming/test_sampler_from_outside.py",
    "docs/how-to/add-a-world.md": "tests/worlds/test_new_world.py",
    "docs/how-to/add-an-op.md": "tests/ops/test_how_to.py",
    "docs/how-to/branch-and-save.md": "tests/test_docs.py",
    "docs/how-to/compile-a-patched-pipeline.md": "tests/integrations/test_compiled.py",
    "docs/how-to/decode-a-stream.md": "tests/test_docs.py",
    "docs/how-to/patch-diffusers.md": "tests/integrations/test_wan_pipeline.py",
    "docs/how-to/save-gpu-memory.md": "tests/test_docs.py",
    "docs/how-to/serve.md": "tests/test_docs.py",
    "docs/how-to/stream-a-wan-checkpoint.md": "tests/integrations/test_text.py",
    "docs/how-to/train-on-many-gpus.md": "tests/distributed/test_train_on_ranks.py",
    "docs/how-to/use-many-gpus.md": "tests/distributed/test_launch.py",
    "docs/how-to/use-as-a-diffusers-pipeline.md": "tests/integrations/test_pipeline.py",
    "docs/reference/compatibility.md": "tests/compat/test_wan.py",
    "docs/tutorial/aapt-on-a-coin.md": "tests/test_docs.py",
    "docs/tutorial/first-stream.md": "tests/test_docs.py",
}
"""Pages with Python in them, and the test that runs it."""


@pytest.mark.parametrize("page", [*PAGES, *CARDS, "README.md", "CONTRIBUTING.md", "bench/README.md"])
def test_a_page_with_python_is_run_by_a_test(page):
    if re.search(r"^```py(thon)?$", (ROOT / page).read_text(), re.MULTILINE):
        assert page in RUN_BY, "run its snippets in a test, and name the test here"
        assert Path(page).name in (ROOT / RUN_BY[page]).read_text() or page == "README.md"


def test_the_snippet_that_needs_a_gpu_names_options_that_exist():
    """docs/how-to/save-gpu-memory.md: a device of which none is here, in a call whose arguments are checked."""
    (block,) = re.findall(r"```py\n(.*?)```", (DOCS / "how-to/save-gpu-memory.md").read_text(), re.DOTALL)
    (call,) = (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call))
    assert ast.unparse(call.func) == "aapt_fast.StreamModel.from_pretrained"
    options = {keyword.arg: None for keyword in call.keywords}
    inspect.signature(aapt_fast.StreamModel.from_pretrained).bind(*call.args, **options)


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_commands_of_a_page_are_understood(page):
    """Options of each call of aapt-fast in a block of shell, and targets of make."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)).replace("\\\n", " ")
    for line in blocks.splitlines():
        words = shlex.split(line, comments=True)
        if "aapt-fast" in words:
            make_parser().parse_args(words[words.index("aapt-fast") + 1 :])
        for target in words[1:2] if words[:1] == ["make"] else []:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
