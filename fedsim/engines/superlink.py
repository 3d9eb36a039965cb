"""Flower's SuperLink, whose Control API takes requests from the holder of one token and nobody else.

    python -m fedsim.engines.superlink TOKEN_FILE OPTIONS...

The options are those of ``flower-superlink``. Without a token that API lets whoever reaches its port submit
an app, which runs as the user, and register nodes.
"""

from __future__ import annotations

import hmac
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from flwr.common.constant import ACCESS_TOKEN_KEY, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.supercore.auth.typing import AccountAuthCredentials, AccountAuthLoginDetails, AccountInfo
from flwr.superlink.auth_plugin import ControlAuthnPlugin

Metadata = Sequence[tuple[str, str | bytes]]


class TokenPlugin(ControlAuthnPlugin):
    """Authenticates whoever brings the token; nobody can log in or get another one."""

    def __init__(self, token: str) -> None:
        if not token:
            raise ValueError("the token is empty, which anybody could bring")
        self._token = token.encode()

    def get_login_details(self) -> AccountAuthLoginDetails | None:
        return None

    def get_auth_tokens(self, device_code: str) -> AccountAuthCredentials | None:
        return None

    def refresh_tokens(self, metadata: Metadata) -> tuple[Metadata | None, AccountInfo | None]:
        return None, None

    def validate_tokens_in_metadata(self, metadata: Metadata) -> tuple[bool, AccountInfo | None]:
        """Whether the request brings the token once, compared in constant time, and as whom it acts."""
        brought = [value for key, value in metadata if key == ACCESS_TOKEN_KEY]
        given = [value.encode() if isinstance(value, str) else value for value in brought]
        if len(given) != 1 or not hmac.compare_digest(given[0], self._token):
            return False, None
        return True, AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)


def main() -> None:
    """Start the SuperLink with the token that the file on the command line holds."""
    command = import_module("flwr.superlink.cli.flower_superlink")
    plugin = TokenPlugin(Path(sys.argv[1]).read_text(encoding="ascii"))
    vars(command)["load_control_authn_plugin"] = lambda: plugin
    sys.argv = ["flower-superlink", *sys.argv[2:]]
    command.flower_superlink()


if __name__ == "__main__":
    main()
