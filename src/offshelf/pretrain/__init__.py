"""What a backbone learns from before the task: one file a method, each an Objective."""
