"""Many runs and what they say together: studies of systems, searches of keys."""
