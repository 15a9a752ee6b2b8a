"""Tables and figures of what the other layers computed; only `figures` imports matplotlib."""
