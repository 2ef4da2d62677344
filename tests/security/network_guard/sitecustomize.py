"""Refuses the network to a Python process and to all that it starts, which import this when they begin.

For that this folder stands in PYTHONPATH, and $NETWORK_GUARD_LOG names a file: it gets a line for each process, and one
for each refusal, since code may go on after one. Sockets between processes of this machine (AF_UNIX) are allowed.
"""

import os
import sys
import traceback

_NAMES = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}
_ADDRESSES = {"socket.bind", "socket.connect", "socket.sendmsg", "socket.sendto"}
_AF_UNIX = 1


def _log(line: str) -> None:
    file = os.open(os.environ["NETWORK_GUARD_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def _guard(event: str, arguments: tuple[object, ...]) -> None:
    if event in _NAMES or (event in _ADDRESSES and arguments[0].family != _AF_UNIX):
        where = traceback.extract_stack(limit=4)[0]
        _log(f"refused {event} {arguments[-1]!r} in {where.filename}:{where.lineno}")
        raise PermissionError(f"{event} {arguments[-1]!r}: there is no network in this test")


sys.addaudithook(_guard)
_log(f"guarded {os.getpid()} {' '.join(sys.orig_argv)}")
