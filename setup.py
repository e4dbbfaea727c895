"""What is installed: the packages of the checkout, and its configurations inside ``cil``; the rest: pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["cil", "cil.*", "strategies*", "scenarios*"]), "cil.configs"])
