"""Passes that bring the many forms of one thing to a single one, before anything else is done.

They change no number beyond float rounding, and run on the graph that teacher and student share.
"""
