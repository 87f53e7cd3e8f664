"""Pure functions on arrays: the loss mathematics, with no model, file or clock."""
