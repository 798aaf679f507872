"""The verbs of the command line: networks.py, states.py, datasets.py, tools.py; what they share is in shared.py."""
