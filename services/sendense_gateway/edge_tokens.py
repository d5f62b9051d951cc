"""Envoy's check of tokens: the same issuers as in every service, which check them again.

Envoy fetches the keys from this process, which reads the JWKS files: a rotated key, or a new one of an OIDC issuer, is
taken within `KEYS_CACHED_SECONDS`, without a restart.
"""

from __future__ import annotations

from typing import Any

from sendense_gateway.config import GatewaySettings
from sendense_gateway.routes import PAGES_CLUSTER
from sendense_rpc.identity import AUDIENCE, ISSUER

Config = dict[str, Any]

KEYS_CACHED_SECONDS = 20
KEYS_PATH = "/keys/"
"""Where this process shows the JWKS of each provider. It has no public route."""
OWN, OIDC = "sendense", "oidc"


def token_filter(settings: GatewaySettings) -> Config:
    """Returns the configuration of the filter `jwt_authn`: a token of any of the issuers is needed."""
    providers = {OWN: _provider(OWN, ISSUER, AUDIENCE)}
    for further in settings.further_issuers:
        providers[OIDC] = _provider(OIDC, further.name, further.audience)
    needed: Config = {"provider_name": OWN}
    if len(providers) > 1:
        needed = {"requires_any": {"requirements": [{"provider_name": name} for name in providers]}}
    return {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": providers,
        "rules": [{"match": {"prefix": "/"}, "requires": needed}],
    }


def _provider(name: str, issuer: str, audience: str) -> Config:
    return {
        "issuer": issuer,
        "audiences": [audience],
        "remote_jwks": {
            "http_uri": {"uri": f"http://gateway{KEYS_PATH}{name}", "cluster": PAGES_CLUSTER, "timeout": "5s"},
            "cache_duration": f"{KEYS_CACHED_SECONDS}s",
            # The listener opens when the keys are there; afterwards they are fetched again before they are too old.
            "async_fetch": {"failed_refetch_duration": "1s"},
        },
        # Services verify it again.
        "forward": True,
        "require_expiration": True,
        # Named, or Envoy would also take a token from the query string, which ends up in logs.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "payload_in_metadata": "payload",
    }
