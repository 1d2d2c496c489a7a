"""Measurements of the engine, each run as a module."""
