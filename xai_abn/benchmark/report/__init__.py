"""The report of a benchmark run: tables, statistics and pictures in one HTML file."""
