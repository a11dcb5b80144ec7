"""The mathematics: one file per method, one folder per verb."""
