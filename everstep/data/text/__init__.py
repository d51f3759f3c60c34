"""Text: files, decoding, vocabularies, tokens."""
