"""The ground: configuration, run folders, files, processes, devices and the one exception; it needs nothing of the rest."""
