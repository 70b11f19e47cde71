"""Series and rules given to promtool, which evaluates them as Prometheus would over that time."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.dashboards.days import SCRAPE_SECONDS, shortened

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "dashboards/alerts"
RULES = tuple(sorted(ALERTS.glob("*.yaml")))


def complaints(series: Mapping[str, Sequence[str]], fired: Mapping[float, set[str]], folder: Path) -> str:
    """What promtool objects to, "" for nothing, where `fired` tells which alerts have fired by so many seconds since
    the beginning. An alert that fires for a single evaluation counts."""
    checks = [
        {
            "expr": 'count by (alertname) (present_over_time(ALERTS{alertstate="firing"}[2d]))',
            "eval_time": f"{seconds:.0f}s",
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)],
        }
        for seconds, names in fired.items()
    ]
    inputs = [{"series": name, "values": " ".join(shortened(values))} for name, values in series.items()]
    interval = f"{SCRAPE_SECONDS:.0f}s"
    whole = {
        "rule_files": [str(file) for file in RULES],
        "evaluation_interval": interval,
        "tests": [{"interval": interval, "input_series": inputs, "promql_expr_test": checks}],
    }
    # JSON is YAML.
    file = folder / "replayed.json"
    file.write_text(json.dumps(whole), encoding="utf-8")
    result = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stdout + result.stderr
