"""The command line: one module per subcommand, which only parses, calls and prints."""
