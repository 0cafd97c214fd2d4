"""Every hook by its name in grid files and on the command line."""

from __future__ import annotations

from fleet.experiments.hooks.hook import Hook
from fleet.experiments.hooks.mlflow_hook import MlflowHook
from fleet.experiments.hooks.tensorboard_hook import TensorBoardHook
from learning.registry import Registry

HOOKS: Registry[Hook] = Registry("hook", TensorBoardHook, MlflowHook)
