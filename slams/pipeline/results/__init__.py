"""Scores, reports and analysis files of a run."""
