"""desim-fl: a discrete-event simulator for asynchronous federated learning in virtual time."""

__version__ = "0.1.0"
