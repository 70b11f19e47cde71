"""Writes every dashboard's file."""

from dashboards.building import FOLDER, built

for name, text in built().items():
    (FOLDER / name).write_text(text, encoding="utf-8")
