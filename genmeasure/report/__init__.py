"""Readings to one self-contained HTML page."""

from genmeasure.report.page import write_report

__all__ = ["write_report"]
