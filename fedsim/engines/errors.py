"""What can go wrong with an engine, as opposed to a client."""


class EngineError(RuntimeError):
    """What an engine consists of could not be started, or ended before the run did.

    Nothing is lost: the run goes on from its directory.
    """


class EngineStoppedError(EngineError):
    """The engine was ended while the server still waited for answers."""
