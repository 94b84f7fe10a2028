"""Data for training: photos from folders."""
