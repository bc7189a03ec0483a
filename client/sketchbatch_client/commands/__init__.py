"""The command's verbs, a file for each or for a few that ask alike; `cli` puts them together."""
