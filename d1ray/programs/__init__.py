"""The programs behind the command line, each read top to bottom. They drive the actors."""
