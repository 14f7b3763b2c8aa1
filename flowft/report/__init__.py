"""Intervals, plots and cards."""
