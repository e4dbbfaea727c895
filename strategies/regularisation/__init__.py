"""Methods that add a term to the loss which keeps old knowledge, and no exemplars."""
