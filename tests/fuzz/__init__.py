"""Fuzzing of everything that reads a file: targets, mutations, the campaign of ``make fuzz``, its corpus."""
