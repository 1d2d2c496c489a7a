"""One program an engine.

Each runs under the interpreter that its engine is installed for, so it imports the standard
library, its engine, and `protocol` beside it; those of paged_engine and of transformers, which run
under ours, may import from the package.
"""
