"""The report of a benchmark run: tables, statistics and drawings in one HTML file."""
