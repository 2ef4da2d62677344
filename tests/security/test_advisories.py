"""What constraints.txt pins has no known vulnerability, as far as an advisory service can be asked."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

UNREACHABLE = ("Could not connect", "requests.exceptions.", "urllib3.exceptions.", "ServiceError", "not redirecting")
"""What pip-audit says when it gets no answer; a fault in the list of packages reads otherwise."""


def vulnerabilities(report: Path, said: str) -> list[str]:
    """The vulnerabilities that pip-audit found, each with its package and what mends it.

    Args:
        report: What it wrote as JSON; missing where it came to no end.
        said: What it wrote to its standard error.
    """
    if not report.exists():
        last = said.strip().splitlines()[-1] if said.strip() else "nothing was said"
        if any(sign in said for sign in UNREACHABLE):
            pytest.skip(f"no advisory service can be reached: {last}")
        pytest.fail(f"pip-audit came to no end: {last}")
    packages = json.loads(report.read_text())["dependencies"]
    found = [
        f"{package['name']} {package['version']}: {advisory['id']}, mended in {', '.join(advisory['fix_versions'])}"
        for package in packages
        for advisory in package.get("vulns", ())
    ]
    # pip-audit counts what it got no answer for as sound
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown and not found:
        pytest.skip(f"the advisory service knows nothing of {len(unknown)} of {len(packages)} packages: {unknown[0]}")
    return found


@pytest.mark.slow
def test_no_pinned_package_has_a_known_vulnerability(tmp_path):
    if find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed: pip install -e '.[dev]'")
    report = tmp_path / "report.json"
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--cache-dir", tmp_path / "cache"]
    command = [sys.executable, "-m", "pip_audit", "-r", CONSTRAINTS, *options, "-f", "json", "-o", report]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=600)

    assert vulnerabilities(report, done.stderr) == []


def package(name, **found):
    return {"name": name, "version": "1.0", "vulns": [], **found}


ADVISORY = {"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"], "aliases": [], "description": ""}
NOT_THERE = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1.0)"}


def test_vulnerabilities_are_told_with_what_mends_them(tmp_path):
    report = tmp_path / "report.json"
    for others in ([], [NOT_THERE]):
        report.write_text(json.dumps({"dependencies": [package("a", vulns=[ADVISORY]), package("c"), *others]}))
        assert vulnerabilities(report, "") == ["a 1.0: PYSEC-1, mended in 1.1, 2.0"]
    report.write_text(json.dumps({"dependencies": [package("a"), package("c")]}))
    assert vulnerabilities(report, "") == []


@pytest.mark.parametrize(
    ("said", "outcome", "message"),
    [
        ("requests.exceptions.ConnectionError: x", pytest.skip.Exception, "no advisory service can be reached: req"),
        ("ERROR: Could not connect to PyPI's vulnerability feed", pytest.skip.Exception, "no advisory service can"),
        ("ERROR: invalid requirements input: c.txt", pytest.fail.Exception, "pip-audit came to no end: ERROR: invalid"),
        ("", pytest.fail.Exception, "came to no end: nothing was said"),
    ],
)
def test_without_an_answer_the_check_is_skipped_and_fails_for_any_other_reason(tmp_path, said, outcome, message):
    with pytest.raises(outcome, match=message):
        vulnerabilities(tmp_path / "report.json", said)


def test_packages_that_the_service_does_not_know_are_not_taken_for_sound(tmp_path):
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"dependencies": [package("a"), NOT_THERE]}))

    with pytest.raises(pytest.skip.Exception, match="knows nothing of 1 of 2 packages: b"):
        vulnerabilities(report, "")
