"""The commands of the shell scripts in benchmarks/ are ones that the command line takes; nothing is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from support import make_images

from xai_abn import metrics
from xai_abn.cli.main import app
from xai_abn.explainers.base import parse_spec
from xai_abn.settings import split_specs

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*/*.sh"))
RECORDER = """#!{python}
import json, sys
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_commands_of_scripts(script, tmp_path):
    """Every command, option, method and metric in them exists."""
    make_images(tmp_path / "coco_multi")
    (tmp_path / "imagenet_val").mkdir()
    (tmp_path / "imagenet_val" / "boxes.csv").write_text("file,wnid,boxes\na.png,n02123045,5 5 20 20\n")
    log, recorder = tmp_path / "log", tmp_path / "bin" / "xai-abn"
    recorder.parent.mkdir()
    recorder.write_text(RECORDER.format(python=sys.executable, log=str(log)))
    recorder.chmod(0o755)
    folders = [str(recorder.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(folders)}
    subprocess.run([script, tmp_path, tmp_path / "output"], check=True, env=environment, cwd=tmp_path)
    commands = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(commands) > 4
    for words in commands:
        command, given = parsed(words)
        if command == "run":
            assert [parse_spec(spec) for spec in split_specs(",".join(given["method"]))]
            assert [metrics.get(name) for name in ",".join(given["metric"]).split(",")]


def parsed(words):
    """Return the command of a command line and its options; click ends the process at one that it does not know."""
    command = typer.main.get_command(app)
    name = "xai-abn"
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    return name, command.make_context(name, words).params
