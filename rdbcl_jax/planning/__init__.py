"""`rdbcl plan`: whether a run fits on chips that are not here, and how fast it can be there."""
