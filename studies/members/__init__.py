"""Members of an ensemble, which leave out a fifth of the training people each."""
