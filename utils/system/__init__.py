"""The command line (cli), errors, files, processes (distributed), signals, seeds, and grids of images."""
