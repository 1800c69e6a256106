"""One prompt under every intervention: the command `inspect` and the server `serve`."""
