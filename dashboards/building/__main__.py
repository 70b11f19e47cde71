"""Writes every dashboard's file; with links to runbooks elsewhere, dashboards and rules into another folder:

python -m dashboards.building [--runbooks-at URL --into FOLDER]
"""

import argparse
from pathlib import Path

from dashboards.building import FOLDER, built, led_to

parser = argparse.ArgumentParser(
    prog="python -m dashboards.building", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--runbooks-at", metavar="URL", help="where docs/runbooks can be read, such as a wiki or a forge")
parser.add_argument("--into", metavar="FOLDER", type=Path, help="where to write them then; the files here stay")
flags = parser.parse_args()
if (flags.runbooks_at is None) != (flags.into is None):
    parser.error("--runbooks-at and --into go together")
try:
    files = built() if flags.runbooks_at is None else led_to(flags.runbooks_at)
except ValueError as error:
    parser.error(f"--runbooks-at: {error}")
for name, text in files.items():
    file = (flags.into or FOLDER) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
