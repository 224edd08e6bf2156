"""What a checkpoint grades on a split, and how far that can be trusted."""
