"""Lists every folder in the reverse of the order that the system gives; imported by Python when it begins.

For that this folder stands in PYTHONPATH. The order of a listing differs between disks, and after files were copied.
"""

import os

_scandir, _listdir = os.scandir, os.listdir


class _Reversed:
    """What `os.scandir` gives, the last first."""

    def __init__(self, path=None):
        with _scandir(path) as entries:
            self._entries = reversed([*entries])

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._entries)

    def close(self):
        self._entries = iter(())


os.scandir = _Reversed
os.listdir = lambda path=None: _listdir(path)[::-1]
