"""Predictions in; figures, result files and pictures out."""
