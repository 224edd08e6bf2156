"""The workshop: what the scripts share. A published model never needs it."""
