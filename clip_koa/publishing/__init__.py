"""Publishing: reports of runs."""
