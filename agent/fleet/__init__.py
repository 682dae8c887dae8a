"""The fleet as an operator sees it: who is there, who is meant, what is sent to them and what became of it."""
