"""Jobs in, results out: local training, one at a time or batched; knows no server, round or branch."""
