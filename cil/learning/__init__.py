"""How one task is learned: the contract, the only gradient loop, passes without learning; not what joins tasks."""
