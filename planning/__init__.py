"""Configs for datasets of scans, by the heuristics of nnU-Net."""
