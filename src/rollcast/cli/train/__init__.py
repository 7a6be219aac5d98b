"""`rollcast train`: trains an agent on a task, and shows its chains."""
