"""The ablation: a grid of training runs, what runs them, and the table of what they gave."""
