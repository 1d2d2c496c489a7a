"""The solutions of the exercises, a module a notebook: the same text as in the notebooks.

Later notebooks import from here what earlier ones built, and `exercises.yours` falls back on it
where a reader's own does not pass yet.
"""
