"""Using a trained run: new users' histories in, ranked items out; a folder for others."""
