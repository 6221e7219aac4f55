"""Files of scans: NIfTI, NRRD, MHA, DICOM and 2D images, read and written."""
