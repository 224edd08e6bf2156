"""The knee X-ray corpus: reading, building, drawing. Imports nothing of the other packages."""
