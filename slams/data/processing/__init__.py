"""Archive files to stores."""
