"""From the corpus to batches."""
