"""Every key of a run: where its value comes from, which values it takes, and which of them are secrets."""
