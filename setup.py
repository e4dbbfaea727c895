"""What is installed: the packages of the checkout, with its configurations inside ``cil``; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["cil", "cil.*", "strategies*", "scenarios*"]), "cil.configs"])
