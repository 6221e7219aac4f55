"""A collection of odd files: what people meet in real datasets, and what is said about each of them.

``tests/make_odd_files.py`` writes the files, and docs/data-problems.md from the messages.
"""
