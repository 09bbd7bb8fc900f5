"""Comparing classifiers on the same test rows: intervals, tests and verdicts. Plain arrays in, nothing of ours."""
