"""Every command of the pages names a script that takes its arguments. The README's are run, by test_readme.py."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edge_sk_scripts import COMMANDS

ROOT = Path(__file__).parents[1]
# A script, the profile or `edge-sk`, up to the comment, the pipe or the end of the line.
COMMAND = re.compile(
    r"(?:python|torchrun [^\n`]*?) ?((?:recipes|deploy)/[\w/]+\.py|-m edge_sk\.profiling)( [^\n`|#]+)?"
    r"|\b(edge-sk)( [a-z]+ [^\n`|#]+)"
)


def commands() -> list[tuple[str, str]]:
    """Of every command of the pages with arguments, the script and the arguments."""
    listing = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in listing.stdout.split())
    # What is code: blocks, in which a backslash continues a line, and spans, which go on in the next line.
    blocks = re.findall(r"```(?:console|bash|sh)\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    code = [block.replace("\\\n", " ") for block in blocks] + [" ".join(span.split()) for span in spans]
    found = [match for text in code for match in COMMAND.findall(text)]
    return sorted({(script or command, (first or second).strip()) for script, first, command, second in found})


class Understood(BaseException):
    """The arguments are parsed."""


@pytest.mark.parametrize(("script", "words"), [one for one in commands() if one[1] and not one[1].endswith("...")])
def test_arguments_are_understood(script: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def understood(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        parse(self, args, namespace)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", understood)
    arguments = shlex.split(words.replace("$IMAGENET", "imagenet"))
    if script == "edge-sk":
        name = COMMANDS[arguments.pop(0)][0]
    else:
        name = {"-m edge_sk.profiling": "edge_sk.profiling.__main__"}.get(script, script[:-3].replace("/", "."))
    with pytest.raises(Understood):
        importlib.import_module(name).main(arguments)


def test_commands_are_found() -> None:
    assert len(commands()) > 50
    assert {script for script, _ in commands()} >= {
        "recipes/train.py",
        "deploy/export.py",
        "edge-sk",
        "-m edge_sk.profiling",
    }
