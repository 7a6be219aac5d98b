"""The tasks that ship with Rollcast: questions, tools and a reward together."""

from rollcast.tasks.base import Task, get_task, task_names

__all__ = ["Task", "get_task", "task_names"]
