"""`vpt report`: what one or more runs did, on one page."""

from vpt_vision.evaluation.run_report.page import write_run_report

__all__ = ["write_run_report"]
