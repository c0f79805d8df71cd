"""Experiments: study files, composition, command line, report; nothing imports it."""
