"""What training costs, as ratios taken in one run; the sections of python -m studies.benchmark."""
