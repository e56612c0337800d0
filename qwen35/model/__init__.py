"""The text decoder: configuration, parameters, state and the functions over them."""
