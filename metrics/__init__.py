"""Metrics that stand on their own: each folder loads with `evaluate.load(folder)`."""
