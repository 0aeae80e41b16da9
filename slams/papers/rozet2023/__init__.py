"""Score-based data assimilation (Rozet & Louppe 2023)."""
