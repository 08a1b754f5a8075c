"""Figures: plain rows in, a matplotlib Figure out; nothing here measures or looks for files."""
