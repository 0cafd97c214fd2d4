"""Every phase by its name in plans."""

from __future__ import annotations

from learning.phases.evaluate import Evaluate
from learning.phases.phase import Phase
from learning.phases.statistics import Statistics
from learning.phases.train import Train
from learning.registry import Registry

PHASES: Registry[Phase] = Registry("phase", Train, Evaluate, Statistics)
