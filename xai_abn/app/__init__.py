"""The page in the browser: look at maps, correct them, compare models."""
