"""The metric of Kellgren-Lawrence grading."""
