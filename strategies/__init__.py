"""One file, one method. Import a strategy from its own file: ``from strategies.wa import WA``."""
