"""The command lines, each a file that is found by its name, whatever family it lies in: parse, call, print."""
