"""The conformance suite, public for authors of strategies: its promises, and the toy runs it watches."""
