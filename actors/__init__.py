"""Ray actors: thin shells that unpack references, call one pure function of d1ray and return a value."""
