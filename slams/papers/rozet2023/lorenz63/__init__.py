"""SDA on Lorenz-63 (Rozet & Louppe 2023, section 4.1)."""
