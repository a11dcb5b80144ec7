"""One story per verb, read top to bottom."""
