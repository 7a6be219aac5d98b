"""What ships to play and to learn: questions, tools and a reward, together."""

from rollcast.tasks.base import Task, get_task, task_names

__all__ = ["Task", "get_task", "task_names"]
