"""What computes answers, each engine a file; `opening` chooses one for an artifact."""
