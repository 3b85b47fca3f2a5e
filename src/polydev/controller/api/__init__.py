"""The HTTP side: who may ask for what, and in which shape it is answered."""
