"""The papers' claims, measured again: one file a method, results beside them. The library never imports this."""
