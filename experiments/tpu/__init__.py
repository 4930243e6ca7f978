"""Compilation for absent TPUs, and the cost model that reads the compiled programs."""
