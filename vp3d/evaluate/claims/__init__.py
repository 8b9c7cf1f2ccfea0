"""Claims about the methods of `vp3d.align`, each measured by one command."""
