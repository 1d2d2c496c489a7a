"""The faults of the bug hunts, a module a notebook; `bug_hunts.bug` finds them by number."""
