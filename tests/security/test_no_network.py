"""Nothing talks to the network while iaunet works: a guard refuses it to every process of a whole way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GUARD = Path(__file__).parent / "network_guard"
WHOLE_WAY = Path(__file__).parents[1] / "reliability" / "whole_way.py"

REACHES_OUT = """
import contextlib, multiprocessing, socket, sys

def reach_out(_=None):
    for attempt in (
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.getaddrinfo("localhost", 80),
        lambda: socket.socket().bind(("127.0.0.1", 0)),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
        lambda: socket.gethostbyname("localhost"),
    ):
        with contextlib.suppress(PermissionError):  # as a library may that reports home
            attempt()
            sys.exit("reached out")

if __name__ == "__main__":
    left, right = socket.socketpair()
    left.sendall(b"allowed")
    assert right.recv(7) == b"allowed"
    reach_out()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.map(reach_out, [0])
"""


@pytest.fixture
def guarded(tmp_path):
    """Run a Python script that may not use the network; returns what the guard says of its processes."""

    def run(*command):
        log = tmp_path / "guard.log"
        there = [str(GUARD), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(there), "NETWORK_GUARD_LOG": str(log)}
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = log.read_text().splitlines()
        return [line for line in lines if line.startswith("guarded")], [
            line for line in lines if line.startswith("refused")
        ]

    return run


def test_the_guard_sees_every_attempt_of_a_process_and_of_those_it_spawns(guarded, tmp_path):
    script = tmp_path / "reaches_out.py"
    script.write_text(REACHES_OUT)

    processes, refused = guarded(script)

    assert len(processes) >= 2
    events = [line.split()[1] for line in refused]
    # a connection first asks for the address of its name
    names = "socket.getaddrinfo", "socket.getaddrinfo", "socket.bind", "socket.sendto", "socket.gethostbyname"
    assert events == [*names, *names]


def test_planning_training_predicting_and_exporting_use_no_network(guarded, write_toy, tmp_path):
    toy = write_toy(tmp_path / "toy", 6)

    processes, refused = guarded(WHOLE_WAY, toy, tmp_path / "workspace", tmp_path / "masks", "--then", "export_model")

    assert refused == []
    assert len(processes) >= 1
    assert len(list((tmp_path / "masks").glob("*.png"))) == 6


@pytest.mark.slow
def test_the_whole_demo_uses_no_network(guarded, tmp_path):
    processes, refused = guarded("-m", "iaunet", "demo", "--output", tmp_path / "demo", "--images", 30, "--epochs", 2)

    assert refused == []
    assert len(processes) >= 3
    assert (tmp_path / "demo" / "overlays.png").exists()


@pytest.mark.slow
def test_loading_processes_choosing_and_reporting_use_no_network(guarded, write_toy, tmp_path):
    toy = write_toy(tmp_path / "toy", 40)
    then = ["--then", "find_best", "export_model", "report"]

    processes, refused = guarded(
        WHOLE_WAY, toy, tmp_path / "workspace", tmp_path / "masks", "--workers", 3, "--loaders", 2, *then
    )

    assert refused == []
    assert len(processes) >= 6
