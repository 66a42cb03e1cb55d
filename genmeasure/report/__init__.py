"""Readings to one self-contained HTML page."""

from genmeasure.report.page import summary, write_report

__all__ = ["summary", "write_report"]
