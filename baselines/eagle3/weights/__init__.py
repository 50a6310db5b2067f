"""Trained EAGLE-3 drafts; none ships yet."""
