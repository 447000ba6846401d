"""The whole path on data that comes with thawkit: probe, fine-tune, adapt, export, verify, report."""

from thawkit.recipes.demo.checks import Check
from thawkit.recipes.demo.walk import DemoResult, run

__all__ = ["Check", "DemoResult", "run"]
