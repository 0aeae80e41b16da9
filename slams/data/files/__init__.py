"""What files look like: axes, units, calendars and conventions of each archive."""
