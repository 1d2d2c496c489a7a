"""Engines side by side, each in a process of its own, and so with its own memory and threads."""
