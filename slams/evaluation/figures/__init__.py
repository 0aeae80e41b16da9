"""Figures of fields, twin experiments and frontiers, in one style."""
