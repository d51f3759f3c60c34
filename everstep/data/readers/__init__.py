"""Readers of data sets: labelled texts, trees."""
