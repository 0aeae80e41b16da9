"""Transfer of remote files, resumable and checksummed."""
