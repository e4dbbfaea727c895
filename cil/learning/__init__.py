"""How a task is learned: the contract of a strategy, the only gradient loop, and passes without learning."""
