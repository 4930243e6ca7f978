"""Programs that a user runs, one for each question; README.md beside this file lists them."""
