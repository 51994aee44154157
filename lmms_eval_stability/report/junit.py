"""Verdicts as JUnit XML, which continuous-integration servers show beside the tests.

One test suite per run, one test case per limit. FAIL is a failure; INCONCLUSIVE is an error, not a skipped test, since
servers show skipped tests in green.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from ..gate import Check, GateResult, Verdict
from .gate import found

#: What XML 1.0 cannot hold, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ELEMENTS = {Verdict.FAIL: "failure", Verdict.INCONCLUSIVE: "error"}


def to_junit(result: GateResult) -> str:
    """The XML document as text, to be written as UTF-8."""
    by_run: dict[str, list[Check]] = {}
    for check in result.checks:
        by_run.setdefault(check.run, []).append(check)
    root = ET.Element("testsuites", {"name": "lmms-eval-stability gate", **_counts(result.checks)})
    for run, checks in by_run.items():
        suite = ET.SubElement(root, "testsuite", {"name": _text(run), **_counts(checks)})
        for check in checks:
            _add_case(suite, check, result.policy)
    ET.indent(root)
    return f"<?xml version='1.0' encoding='utf-8'?>\n{ET.tostring(root, encoding='unicode')}\n"


def _add_case(suite: ET.Element, check: Check, policy: str) -> None:
    where = {"classname": _text(f"{check.run}.{check.task}"), "name": _text(f"{check.task}: {check.limit}")}
    case = ET.SubElement(
        suite, "testcase", {**where, "file": _text(policy), "line": str(check.limit.line), "time": "0"}
    )
    if check.verdict in _ELEMENTS:
        element = ET.SubElement(
            case, _ELEMENTS[check.verdict], {"type": check.verdict.name, "message": _text(check.reason)}
        )
        element.text = _text(f"{check.task}: {check.limit}; found {found(check)} (n = {check.n}): {check.reason}")


def _counts(checks: list[Check] | tuple[Check, ...]) -> dict[str, str]:
    def count(verdict: Verdict) -> str:
        return str(sum(check.verdict is verdict for check in checks))

    failures, errors = count(Verdict.FAIL), count(Verdict.INCONCLUSIVE)
    return {"tests": str(len(checks)), "failures": failures, "errors": errors, "skipped": "0", "time": "0"}


def _text(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
