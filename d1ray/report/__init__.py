"""What a run came to, as one HTML page that needs no network, and as a trace of its actors."""
