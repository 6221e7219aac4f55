"""Cases: which files belong together, their classes, splits and checks."""

from .cases import Case, CasesError, ScanDataset, find_cases, find_dataset

__all__ = ["Case", "CasesError", "ScanDataset", "find_cases", "find_dataset"]
