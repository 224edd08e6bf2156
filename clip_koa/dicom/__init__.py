"""Results as DICOM objects, beside the image they are of. Needs the extra `pacs`."""
