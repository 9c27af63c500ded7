"""Every code block of the documentation works as it stands there, page by page and from top to bottom.

A page is what a user does in an empty folder. A block with a title is a file of that name; other `python`
blocks run in one namespace, `bash` blocks in the shell. There `vpt train` is given few steps (SHORT), for a
page shows what a user would type. A `yaml` block with `steps` is the config of a run and is checked as one.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vpt_vision.config import load_config

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
KNOWN = {"python", "yaml", "bash", "text"}  # text is what something prints
SHORT = "steps=2 checkpoint.every=1 log.every=1"


@pytest.mark.timeout(600)  # a page of many commands, each of which imports for seconds
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_works(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    namespace = {}
    for number, (language, title, code) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1):
        where = f"{page.name}, block {number}"
        assert language in KNOWN, f"{where}: what is '{language}'?"
        if title:
            (tmp_path / title).write_text(code, encoding="utf-8")
        if language == "python" and not title:
            exec(compile(code, where, "exec"), namespace)
        elif language == "yaml" and "steps" in yaml.safe_load(code):
            load_config(yaml.safe_load(code))
        elif language == "bash":
            _shell(code, where)


def test_no_page_is_missing_from_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert {page.name for page in PAGES} == set(re.findall(r": (\w+\.md)$", text, flags=re.MULTILINE))


def _shell(code, where):
    vpt = Path(sys.executable).with_name("vpt")
    prelude = f"""
        vpt() {{ if [ "$1" = train ]; then '{vpt}' "$@" {SHORT}; else '{vpt}' "$@"; fi; }}
        python() {{ '{sys.executable}' "$@"; }}
    """
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", prelude + code],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{where}:\n{code}\n{done.stdout}\n{done.stderr}"
