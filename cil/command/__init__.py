"""From a command line to the folder of a run; nothing that decides a number."""
