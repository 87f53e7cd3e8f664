"""Questions asked of trained policies: does a signal tell what carries over, what moves what."""
