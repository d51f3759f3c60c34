"""Readers of data sets: labelled texts, tagged sentences, trees."""
