"""What findings of the cluster have in common: refusals, and ages."""

from datetime import UTC, datetime

from kvgauge.doctor.asking import Answer
from kvgauge.doctor.findings import Finding, warn


def unread(check: str, answer: Answer, verb_and_what: str) -> Finding:
    """What the API server does not show, or could not be asked: nobody knows it, so it is no failure of the link."""
    if answer.refused:
        return warn(check, f"not shown to us (HTTP {answer.status})", f"kubectl auth can-i {verb_and_what}")
    return warn(check, f"could not be read: {answer.why or f'HTTP {answer.status}'}", "kubectl get --raw /readyz")


def age_seconds(stamp: str, wall_seconds: float) -> float | None:
    """Of RFC 3339; None for what is none."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return wall_seconds - (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
