"""A study's films and readings become a corpus of graded knees."""
