"""File formats: axes, units, calendars and conventions of each archive."""
