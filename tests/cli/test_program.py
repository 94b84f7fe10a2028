"""The program as a whole: help, signals, its own drawings, names that a terminal cannot show."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata

import numpy as np
import pytest
import typer
from PIL import Image
from support import runner

import xai_abn
from xai_abn.benchmark.store import Store
from xai_abn.cli import distill, doctor, train
from xai_abn.cli.main import COMMANDS, FIRST, app
from xai_abn.errors import UnknownNameError
from xai_abn.models.folding import SlowPrecisionWarning, check_bfloat16
from xai_abn.training import DistillationSettings, TrainingSettings


def save(path, seed=0, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("arguments", [["-h"], ["explain", "-h"], ["benchmark", "run", "-h"], ["train", "--help"]])
def test_help_has_a_short_name(arguments):
    """As in most programs."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_the_version_has_a_short_name():
    """Too."""
    assert runner.invoke(app, ["-V"]).output.startswith("xai-abn ")


def test_the_package_is_a_program():
    """Python -m xai_abn."""
    done = subprocess.run([sys.executable, "-m", "xai_abn", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"xai-abn {xai_abn.__version__}\n"


@pytest.mark.parametrize(
    ("panels", "settings"), [(train.PANELS, TrainingSettings), (distill.PANELS, DistillationSettings)]
)
def test_every_setting_has_its_place_in_the_help(panels, settings):
    """Under one heading."""
    assert sorted(name for names in panels.values() for name in names) == sorted(settings.model_fields)


@pytest.mark.parametrize("name", ["train", "distill", "explain", "app"])
def test_the_examples_in_the_help_are_commands(name):
    """Their options exist."""
    command = typer.main.get_command(app).commands[name]
    (line,) = [line for line in command.help.splitlines() if line.strip().startswith("Example:")]
    program, verb, *arguments = line.partition(":")[2].split()
    assert (program, verb) == ("xai-abn", name)
    command.make_context(name, arguments)


def test_the_help_names_each_command_without_importing_it():
    """With the first paragraph of its own help."""
    group = typer.main.get_command(app)
    for name, (_, line) in COMMANDS.items():
        assert " ".join(group.commands[name].help.split("\n\n")[0].split()) == line
    shown = runner.invoke(app, ["--help"], env={"COLUMNS": "250"}).output
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf" {name} +{re.escape(line)} ", shown)
    code = "import sys; from xai_abn.cli.main import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
    code += "print([n for n in sys.modules if n.startswith('xai_abn.cli.')], 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['xai_abn.cli.commands', 'xai_abn.cli.main'] False"


def test_the_program_alone_shows_five_things_to_try():
    """Each is a command with options that exist."""
    shown = runner.invoke(app, [])
    assert shown.exit_code == 0
    assert len(FIRST) == 5
    group = typer.main.get_command(app)
    for line, _ in FIRST:
        assert line in shown.output
        _, verb, *arguments = line.split()
        group.commands[verb].make_context(verb, arguments)


def test_doctor_names_what_is_missing_and_how_to_install_it(monkeypatch):
    """By extra; what is too old is missing, too."""
    installed = doctor._version

    def version(name):
        return {"onnx": None, "nibabel": "1.0"}.get(name, installed(name))

    monkeypatch.setattr(doctor, "_version", version)
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "onnx>=1.16 (not installed); run: pip install 'xai-abn[onnx]'" in result.output
    assert "nibabel>=5.2 (found 1.0); run: pip install 'xai-abn[volumes]'" in result.output
    assert "app           installed" in result.output
    assert "tiger cat" in result.output
    assert "cpu: " in result.output


def test_doctor_fails_where_the_package_itself_lacks_something(monkeypatch):
    """Before it tries anything."""
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "timm" else "99")
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "needed: timm>=1.0.16 (not installed); run: pip install 'timm>=1.0.16'" in result.output


def test_doctor_knows_every_extra():
    """Except those for work on the package itself."""
    names = set(metadata.metadata("xai-abn").get_all("Provides-Extra"))
    assert doctor.PURPOSES.keys() == names - {"test", "dev", "docs", "benchmarks"}


@pytest.mark.parametrize("arguments", [["--verbose", "list", "datasets"], ["list", "datasets"]])
def test_verbose_says_what_is_done(arguments, tmp_path):
    """On standard error; before the command or behind it, and only if asked."""
    save(tmp_path / "a.png")
    log = logging.getLogger("xai_abn")
    try:
        behind = [] if "--verbose" in arguments else ["--verbose"]
        assert runner.invoke(app, arguments).exit_code == 0
        assert bool(log.handlers) == ("--verbose" in arguments)
        explain = ["explain", str(tmp_path / "a.png"), "-m", "lite0", "-M", "cam", "-o", str(tmp_path / "out")]
        result = runner.invoke(app, explain + behind)
        assert result.exit_code == 0, result.output
        assert log.level == logging.INFO
    finally:
        log.handlers, log.level = [], logging.NOTSET


def test_the_log_tells_model_layer_and_method(caplog):
    """Under the names of the modules."""
    with caplog.at_level(logging.INFO, logger="xai_abn"):
        model = xai_abn.load_model("lite0")
        xai_abn.explain(model, "example:cat", "grad-cam")
    told = [(record.name, record.getMessage()) for record in caplog.records]
    assert any(name == "xai_abn.models.zoo" and text.startswith("loaded lite0 as") for name, text in told)
    assert any(name == "xai_abn.pipeline" and text.startswith("grad-cam of 1 images") for name, text in told)


def test_a_shell_completes_commands():
    """As the script that --install-completion writes asks."""
    asked = {"_XAI_ABN_COMPLETE": "complete_bash", "COMP_WORDS": "xai-abn exp", "COMP_CWORD": "1"}
    code = "from xai_abn.cli.main import app; app(prog_name='xai-abn')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["explain", "export"]


def test_own_drawings_are_not_explained(tmp_path, monkeypatch):
    """A second run over the same folder gives the same result."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    for _ in range(2):
        result = runner.invoke(app, ["explain", ".", "-m", "lite0", "-M", "cam,grad-cam", "-o", "."])
        assert result.exit_code == 0, result.output
        assert len(list(tmp_path.glob("*.png"))) == 4
    assert "3 drawings of xai-abn are skipped" in result.output
    named = runner.invoke(app, ["explain", "a.cam.png", "-m", "lite0", "-M", "cam", "-o", "out"])
    assert named.exit_code == 0


def test_an_empty_argument_is_not_the_current_folder(tmp_path, monkeypatch):
    """An unset variable of the shell."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    result = runner.invoke(app, ["explain", "", "-m", "lite0", "-o", "out"])
    assert result.exit_code == 1
    assert "empty" in result.output


def test_the_whole_image_can_be_shown(tmp_path):
    """Nothing of a panorama is cut off."""
    save(tmp_path / "wide.png", size=(400, 90))
    arguments = [
        "explain",
        str(tmp_path / "wide.png"),
        "-m",
        "lite0",
        "-M",
        "cam",
        "-o",
        str(tmp_path / "out"),
        "--json",
    ]
    assert '"region": [' in runner.invoke(app, arguments).output
    result = runner.invoke(app, [*arguments, "--crop", "squash"])
    assert result.exit_code == 0
    assert "400.0" in result.output
    assert runner.invoke(app, [*arguments, "--crop", "round"]).exit_code != 0


def test_a_name_that_the_terminal_cannot_show_ends_nothing(tmp_path):
    """As of a Japanese file in a French window."""
    save(tmp_path / "休日の写真.png")
    command = [sys.executable, "-m", "xai_abn", "explain", str(tmp_path / "休日の写真.png"), "-m", "lite0", "-M", "cam"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM")
def test_a_terminated_run_ends_as_an_interrupted_one(tmp_path):
    """One line, exit code 143, and the same command continues."""
    for number in range(30):
        save(tmp_path / "images" / "cat" / f"{number}.png", number)
    command = [sys.executable, "-m", "xai_abn", "benchmark", "run", "--data", f"images:{tmp_path / 'images'}"]
    command += ["-m", "lite0", "-M", "cam", "--metric", "deletion", "-o", str(tmp_path / "run.sqlite")]
    process = subprocess.Popen([*command, "--batch-size", "1"], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "run.sqlite").exists():
            break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said.count("\n") == 1
    assert (
        f"interrupted; the images measured so far are in {tmp_path / 'run.sqlite'}; run the same command to continue"
        in said
    )
    subprocess.run([*command, "--limit", "2"], check=True, capture_output=True)


def test_a_run_killed_while_it_was_made_is_begun_again(tmp_path):
    """The file is there, but has no tables."""
    import sqlite3

    path = tmp_path / "run.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    assert path.stat().st_size
    with Store.create(path, {"a": 1}) as store:
        store.check_identity({"a": 1})
    with Store.create(path, {"a": 1}):
        pass


def test_bfloat16_is_no_default_and_says_where_it_is_slow(monkeypatch):
    """On a processor without units for it."""
    import torch

    assert not TrainingSettings(data="images:x").bf16
    assert not DistillationSettings().bf16
    for supported in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported)
        if supported:
            check_bfloat16(torch.device("cpu"))
        else:
            with pytest.warns(SlowPrecisionWarning, match="slower"):
                check_bfloat16(torch.device("cpu"))
        check_bfloat16(torch.device("cuda"))


def test_results_are_short_in_a_notebook(gap_net, image):
    """And a misspelled key suggests the right one."""
    result = xai_abn.explain(gap_net, [image] * 3, ["cam", "grad-cam"])
    assert len(repr(result)) < 300
    assert len(repr(result[0]["cam"])) < 1000
    with pytest.raises(UnknownNameError, match="'grad-cam'"):
        result[0]["gradcam"]
