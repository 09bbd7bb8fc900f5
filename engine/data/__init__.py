"""Labelled texts, from their files to batches: sources -> prepare -> store -> plan -> loader."""
