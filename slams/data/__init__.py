"""Files to labelled arrays: read by name, joined by date, put on a grid by coordinate."""
