"""Comparisons of arms over seeds: what is run, what is measured, and what that allows one to say."""

from vpt_vision.evaluation.compare.contrasts import headline
from vpt_vision.evaluation.compare.output import PAGE_FILE, write_outputs
from vpt_vision.evaluation.compare.spec import ComparisonSpec, load_spec
from vpt_vision.evaluation.compare.study import Study, run_comparison

__all__ = ["PAGE_FILE", "ComparisonSpec", "Study", "headline", "load_spec", "run_comparison", "write_outputs"]
