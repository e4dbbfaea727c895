"""A sweep: methods x budgets x seeds x protocols from one YAML file, each run a process.

Nothing is kept beside the run folders: what is done, what goes on and what is left is read from them, so the command
that started a sweep also continues it.
"""
