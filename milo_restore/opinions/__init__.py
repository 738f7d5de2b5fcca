"""Metrics against people: data sets of opinions, scores, correlations, and metrics that stand in for people."""
