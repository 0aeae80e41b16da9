"""SDA on the Kolmogorov flow (Rozet & Louppe 2023, section 4.2)."""
