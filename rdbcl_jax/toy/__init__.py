"""What the quickstart needs: a tiny base model made from nothing, and verifiable tasks on real
digits."""
