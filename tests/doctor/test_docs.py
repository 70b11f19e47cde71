"""docs/doctor.md names the checks that there are."""

import re
from pathlib import Path

from kvgauge.doctor import checking, checking_cluster
from kvgauge.doctor.here import Here

from .test_checking import facts

TEXT = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
NAMED = [match[1] for match in re.finditer(r"^\| `([^`]+)` \|", TEXT, re.MULTILINE)]


def test_the_checks_of_a_pod_are_those_of_the_page() -> None:
    found = checking.check(facts(), Here("", ""))
    assert NAMED[: len(found)] == [finding.check for finding in found]


def test_the_checks_of_a_cluster_are_those_of_the_page() -> None:
    assert [name.split()[0] for name in NAMED[10:16]] == ["api-server", *checking_cluster.LINKS[:5]]
    assert [name.rpartition(" ")[2] for name in NAMED[16:]] == ["metric", "target", "pods", "conditions"]
