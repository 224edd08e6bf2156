"""Training: from a configuration, over steps and evaluations, to a run folder."""
