"""Medical scans: files, cases, preparation, patches."""
