"""Figures: a data frame in, a file out."""
