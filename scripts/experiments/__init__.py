"""Comparisons and measurements: the programs behind the tables of docs/."""
