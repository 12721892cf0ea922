"""Kernels, sessions and what they return."""

from mpklab.run.kernel import Generation, Kernel, Result, build
from mpklab.run.sampling import Sampling
from mpklab.run.session import Outcome, Session

__all__ = ["Generation", "Kernel", "Outcome", "Result", "Sampling", "Session", "build"]
