import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points

import pytest

from iaunet.__main__ import COMMANDS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_command_the_commands_are_listed(arguments, capsys):
    assert main(arguments) == 0

    shown = capsys.readouterr().out
    assert all(f"iaunet_{name} " in shown for name in COMMANDS)


def test_an_unknown_command_is_answered_with_the_known_ones(capsys):
    assert main(["segment"]) == 2

    shown = capsys.readouterr()
    assert shown.err == "error: there is no command 'segment'\n"
    assert "iaunet_train" in shown.out


@pytest.mark.parametrize("name", ["plan_and_preprocess", "plan-and-preprocess", "iaunet_plan_and_preprocess"])
def test_a_command_is_run_by_its_name_and_its_code_returned(name, capsys, tmp_path):
    assert main([name, str(tmp_path / "nowhere"), "--workspace", str(tmp_path / "workspace")]) == 2
    assert "nowhere does not exist: check the path" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_installed_under_its_name(name):
    module, _ = COMMANDS[name]

    assert callable(import_module(module).main)
    installed = {script.name: script.value for script in entry_points(group="console_scripts")}
    assert installed[f"iaunet_{name}"] == f"{module}:main"


def test_the_list_and_the_help_of_planning_import_no_torch():
    program = (
        "import sys; from iaunet.__main__ import main; main([])\n"
        "from iaunet.preprocessing.command import build_parser; build_parser().format_help()\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'slow import'"
    )

    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
