"""Files and clocks of a run: written whole or not at all, sealed, read with distrust; knows no federation."""
