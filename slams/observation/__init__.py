"""What is seen: operators and observations."""
