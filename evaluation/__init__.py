"""Predictions in; metrics, report files and pictures out."""
