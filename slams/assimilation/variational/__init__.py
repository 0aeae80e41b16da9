"""Variational methods and the extended Kalman filter."""
