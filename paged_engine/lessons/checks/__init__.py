"""The checks of the exercises, a module a notebook; `exercises.check` finds them by number."""
