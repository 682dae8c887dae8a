"""Who is obeyed: keys, signed envelopes, and the statements by which one set of keys hands over to the next."""
