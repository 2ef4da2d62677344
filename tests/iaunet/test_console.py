import io
import logging
import os
import signal
import subprocess
import sys
import threading

import pytest

from iaunet.console import (
    MEMORY_RAN_OUT,
    Stopped,
    command_parser,
    handling_signals,
    run_command,
    telling_from_handlers,
    terminating_like_interrupt,
)
from iaunet.errors import PlanError


@pytest.fixture
def parser():
    parser = command_parser("iaunet_try", "Tries.")
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="rows a step")
    parser.add_argument("folders", nargs="*")
    return parser


@pytest.mark.parametrize(
    "options", [["--batch_size", "4"], ["--batch-size", "4"], ["--batch-size=4"], ["--batch_size=4"]]
)
def test_options_take_underscores_and_hyphens(parser, options):
    assert parser.parse_args(options).batch_size == 4


def test_only_the_options_name_is_changed_and_not_its_value(parser):
    arguments = parser.parse_args(["a-b", "--workspace=my-data/--x-y"])

    assert str(arguments.workspace) == "my-data/--x-y"
    assert arguments.folders == ["a-b"]


@pytest.mark.parametrize("options", [["--batch", "4"], ["--unknown"], ["--batch_size", "many"]])
def test_unknown_and_shortened_options_are_refused_with_2(parser, options, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(options)

    assert caught.value.code == 2
    assert "usage: iaunet_try" in capsys.readouterr().err


def test_help_shows_defaults_and_the_workspace(parser):
    text = parser.format_help()

    assert "rows a step (default: 16)" in text
    assert "(default: None)" not in text
    assert "--workspace DIR" in text


@pytest.fixture
def become_rank(monkeypatch):
    """Set what torchrun tells a process by."""

    def become(rank):
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))

    return become


def test_of_several_ranks_one_tells_what_is_done_and_each_what_went_wrong(capsys, become_rank):
    def body():
        logging.getLogger("iaunet.anything").info("done")
        raise PlanError("a fault")

    told = []
    for rank in (0, 1):
        become_rank(rank)
        assert run_command(body, joins_ranks=True) == 2
        told.append(capsys.readouterr())

    assert [rank.out for rank in told] == ["done\n", ""]
    assert [rank.err for rank in told] == ["error: a fault\n"] * 2


def test_what_interrupts_several_ranks_is_told_once(capsys, become_rank):
    become_rank(1)

    assert run_command(stop_with(KeyboardInterrupt()), joins_ranks=True) == 130
    assert capsys.readouterr().err == ""


def test_processes_that_join_nobody_tell_what_they_do(capsys, monkeypatch, become_rank):
    def body():
        logging.getLogger("iaunet.anything").info("done")
        raise KeyboardInterrupt

    told = []
    become_rank(1)
    assert run_command(body) == 130
    told.append(capsys.readouterr())
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")  # as launchers do that know of no ranks of a machine
    assert run_command(body, joins_ranks=True) == 130
    told.append(capsys.readouterr())

    assert [each.out for each in told] == ["done\n"] * 2
    assert [each.err for each in told] == ["stopped: run the same command again to go on\n"] * 2


def stop_with(fault):
    def body():
        raise fault

    return body


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        (PlanError("width is 0: give 1"), 2, "error: width is 0: give 1\n"),
        (Stopped("saved epoch 3"), 130, "stopped: saved epoch 3\n"),
        (KeyboardInterrupt(), 130, "stopped: run the same command again to go on\n"),
        (MemoryError(), 2, f"error: {MEMORY_RAN_OUT}\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, f"error: {MEMORY_RAN_OUT}\n"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_an_exit_code(fault, code, line, capsys):
    assert run_command(stop_with(fault)) == code
    assert capsys.readouterr().err == line


def test_the_bodys_code_is_returned_and_other_faults_keep_their_traceback():
    assert run_command(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_the_log_goes_to_the_screen_within_a_command_only(capsys):
    logger = logging.getLogger("iaunet.anything")

    run_command(lambda: logger.info("100 %s", "%") or 0)
    logger.info("not shown")

    assert capsys.readouterr().out == "100 %\n"


def test_names_that_a_terminal_would_obey_are_logged_as_text(capsys):
    logger = logging.getLogger("iaunet.anything")

    run_command(lambda: logger.info("failed: %s\nnext", "a\x1b]0;title\x07\r.png") or 0)

    assert capsys.readouterr().out == "failed: a\\x1b]0;title\\x07\\r.png\nnext\n"


def test_a_terminal_that_cannot_show_a_name_gets_it_escaped(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    monkeypatch.setattr(sys, "stdout", narrow)

    run_command(lambda: logging.getLogger("iaunet").info("Müller") or 0)

    narrow.flush()
    assert narrow.buffer.getvalue() == b"M\\xfcller\n"


def test_a_command_whose_reader_has_gone_works_on_in_silence(tmp_path):
    code = (
        "import logging, sys, time\n"
        "from pathlib import Path\n"
        "from iaunet.console import run_command\n"
        "def body():\n"
        "    for number in range(20_000): logging.getLogger('iaunet').info('line %d', number)\n"
        "    Path(sys.argv[1]).touch()\n"
        "    return 0\n"
        "sys.exit(run_command(body))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "done")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        said = process.stderr.read()

    assert (process.returncode, said) == (0, b"")
    assert (tmp_path / "done").exists()


def test_what_the_user_may_not_open_is_named_and_a_refusal_without_a_name_keeps_its_traceback(tmp_path, capsys):
    def refuse(*name):
        raise PermissionError(13, "Permission denied", *name)

    assert run_command(lambda: refuse(str(tmp_path / "a"))) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'a'} cannot be opened (Permission denied): mend its permissions\n"
    )
    with pytest.raises(PermissionError):
        run_command(refuse)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk: /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_log_fills_the_disk_works_on_and_says_so_once(unbuffered):
    program = (
        "import logging, sys\n"
        "from iaunet.console import run_command\n"
        "def work():\n"
        "    for line in range(3): logging.getLogger('iaunet').info(line)\n"
        "    return 1\n"
        "sys.exit(run_command(work))\n"
    )

    with open("/dev/full", "w") as full:  # noqa: PTH123
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=environment,
        )

    left_out = "warning: lines are left out that cannot be written (No space left on device)\n"
    assert (done.returncode, done.stderr) == (1, left_out)


def test_a_request_to_terminate_stops_like_an_interrupt_and_the_old_handler_returns():
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), terminating_like_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)

    assert signal.getsignal(signal.SIGTERM) is before


def test_a_request_to_terminate_stops_a_command_wherever_it_is(capsys):
    missed = []
    with handling_signals((signal.SIGTERM,), lambda number, frame: missed.append(number)):
        assert run_command(lambda: signal.raise_signal(signal.SIGTERM) or 0) == 130
    assert not missed
    assert capsys.readouterr().err == "stopped: run the same command again to go on\n"


def test_what_a_handler_tells_is_logged_by_another_thread_and_before_the_block_ends(caplog):
    logger = logging.getLogger("iaunet.handlers")
    with caplog.at_level(logging.INFO, "iaunet"), telling_from_handlers(logger) as tell:  # noqa: SIM117
        with handling_signals((signal.SIGINT,), lambda *_: tell("stopping")):
            signal.raise_signal(signal.SIGINT)

    (told,) = caplog.records
    assert told.getMessage() == "stopping"
    assert told.thread != threading.get_ident()  # whose own line it may have interrupted


def test_signals_are_handled_within_the_block():
    seen = []

    with handling_signals((signal.SIGINT, signal.SIGTERM), lambda number, frame: seen.append(number)):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    assert seen == [signal.SIGINT, signal.SIGTERM]


def test_a_thread_that_may_set_no_handlers_goes_on_without():
    reached = []

    def work():
        with terminating_like_interrupt():
            reached.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert reached == [True]


@pytest.mark.parametrize(
    ("variable", "ours", "other"), [("OMP_WAIT_POLICY", "PASSIVE", "ACTIVE"), ("OPENBLAS_NUM_THREADS", "1", "2")]
)
def test_threads_of_libraries_wait_passively_and_are_few_unless_the_user_says_otherwise(variable, ours, other):
    program = f"import os; from iaunet.console import run_command; run_command(lambda: print(os.environ[{variable!r}]))"

    for given, expected in ((None, ours), (other, other)):
        environment = {name: os.environ[name] for name in os.environ if name != variable}
        environment |= {variable: given} if given else {}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        assert done.stdout.decode().strip() == expected
