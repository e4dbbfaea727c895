"""The conformance suite, public for authors of strategies, and its toy runs; not the tests of this project."""
