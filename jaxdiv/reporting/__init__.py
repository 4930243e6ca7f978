"""What a run found: the results table, pictures and report.html."""
