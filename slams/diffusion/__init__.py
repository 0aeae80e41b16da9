"""What we believe: schedules, denoisers, guidance and samplers."""
