"""Reports: one run, all runs, the results table, grades of submissions."""
