"""Methods that keep one network and exemplars, and distil what the network knew."""
