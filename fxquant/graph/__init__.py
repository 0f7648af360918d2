"""Graphs: tracing a model, and the passes that turn it into teacher and student."""
