"""Opens pages in a headless Chromium, for tests that need one."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 90


@dataclass(frozen=True)
class Browser:
    """A Chromium with a profile of its own."""

    program: str
    profile: Path

    def dump(self, page: Path) -> tuple[str, list[str]]:
        """The page's DOM after its scripts ran, and what it wrote to the console."""
        done = self._run("--dump-dom", "--window-size=1280,1000", page.as_uri())
        return done.stdout, re.findall(r"CONSOLE.*", done.stderr)

    def shoot(self, page: Path, picture: Path, width: int, height: int) -> None:
        """Save what a window shows as PNG."""
        self._run(f"--screenshot={picture}", f"--window-size={width},{height}", "--hide-scrollbars", page.as_uri())

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        usual = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0")
        command = [self.program, *usual, f"--user-data-dir={self.profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, check=True)


def find_browser(profile: Path) -> Browser:
    """A Chromium of this machine; the test is skipped if there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium found ({', '.join(NAMES)}): install one to open pages in it")
    return Browser(program, profile)
