"""From a command line to a folder. What a run does is not decided here."""
