"""Whoever else carries out requests: the processes of this machine. All of them are `events.Backend`s."""
