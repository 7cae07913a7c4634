"""python -m trainer.rl.servers: see `start`."""

from trainer.rl.servers.start import main

main()
