"""Benchmarks: one module a command, found by the program by looking."""
