"""One file, one method. Import a strategy from its own file: ``from strategies.rehearsal.wa import WA``."""
