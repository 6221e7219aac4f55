"""Files of scans: NIfTI, NRRD, MHA, DICOM and pictures, read and written."""
