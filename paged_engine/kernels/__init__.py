"""What is written in C++: compiled on first use, called through ctypes.

`build` makes the library, `library` calls it, and the `*.cpp` are written to be read.
"""
