"""Training: run configuration, loading, augmentation, optimisation, checkpoints and the engine."""
