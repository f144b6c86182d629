"""Where frames come from: a DICOMweb service, a client of the user's, or local files."""
