"""The command line: one module a subcommand, each only parses, calls and prints."""
