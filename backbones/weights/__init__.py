"""Where weights come from: files, layouts of other libraries, what goes where."""

from .load import check_pixels, explain_mismatch, load_weights, pretrained_is_skipped, skip_pretrained

__all__ = ["check_pixels", "explain_mismatch", "load_weights", "pretrained_is_skipped", "skip_pretrained"]
