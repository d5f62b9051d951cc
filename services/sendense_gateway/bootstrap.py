"""Envoy's whole configuration, as one document made from settings, certificate and contract."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sendense_gateway.config import GatewaySettings
from sendense_gateway.contract import Contract
from sendense_gateway.edge_errors import local_reply_config
from sendense_gateway.edge_tokens import token_filter
from sendense_gateway.routes import (
    BUFFER,
    DOWNLOADS_CLUSTER,
    JWT,
    NO_TRANSCODING,
    PAGES_CLUSTER,
    TRANSCODER,
    routes,
)
from sendense_gateway.tls import ServerCertificate
from sendense_rpc.mtls import mtls_folder

Config = dict[str, Any]

_TYPES = "type.googleapis.com/envoy.extensions"
CORS = "envoy.filters.http.cors"
_MAX_CONNECTIONS = 2000
_MAX_ANSWER_BYTES = 8 << 20
"""As much as a service may send in one message; Envoy's default of 1 MiB would make a page of files a 500."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the configuration is made from.

    Attributes:
        settings: The gateway's settings.
        port: Port to listen on; 0 lets the kernel choose.
        certificate: What it shows to clients.
        contract: The RPCs.
        descriptor: File of the contract's descriptor set, which Envoy reads too.
    """

    settings: GatewaySettings
    port: int
    certificate: ServerCertificate
    contract: Contract
    descriptor: Path


def bootstrap(inputs: Inputs) -> Config:
    """Returns the bootstrap document."""
    settings = inputs.settings
    clusters = [_grpc_cluster(owner, settings) for owner in inputs.contract.owners]
    clusters.append(_cluster(DOWNLOADS_CLUSTER, settings.restore_http_socket, settings, "http/1.1"))
    clusters.append(_cluster(PAGES_CLUSTER, settings.pages_socket))
    return {
        "admin": {"address": {"pipe": {"path": str(settings.admin_socket), "mode": 0o600}}},
        "static_resources": {"listeners": [_listener(inputs)], "clusters": clusters},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPES}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": _MAX_CONNECTIONS,
                    },
                }
            ]
        },
    }


def _listener(inputs: Inputs) -> Config:
    certificate = inputs.certificate
    tls = {
        "@type": f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(certificate.chain)},
                    "private_key": {"filename": str(certificate.key)},
                }
            ],
        },
    }
    return {
        "name": "public",
        "address": {"socket_address": {"address": inputs.settings.listen_host, "port_value": inputs.port}},
        # A second gateway on this port must fail, not share it.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": [
            {
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
                "transport_socket_connect_timeout": "10s",
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": _connection_manager(inputs),
                    }
                ],
            }
        ],
    }


def _connection_manager(inputs: Inputs) -> Config:
    mutation = "http.early_header_mutation"
    stripped = [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ("x-sendense-", "x-envoy-")]
    config: Config = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "public",
        "server_name": "sendense",
        "codec_type": "AUTO",
        "use_remote_address": True,
        "always_set_request_id_in_response": True,
        "early_header_mutation_extensions": [
            {
                "name": f"envoy.{mutation}.header_mutation",
                "typed_config": {
                    "@type": f"{_TYPES}.{mutation}.header_mutation.v3.HeaderMutation",
                    # A request id is made here for each request: one from outside would mix up our logs.
                    "mutations": [*stripped, {"remove": "x-request-id"}],
                },
            }
        ],
        "normalize_path": True,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "max_request_headers_kb": 32,
        "common_http_protocol_options": {"max_headers_count": 100, "idle_timeout": "300s"},
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 1 << 20,
            "initial_connection_window_size": 4 << 20,
        },
        "request_headers_timeout": "10s",
        "request_timeout": "60s",
        "stream_idle_timeout": "300s",
        "local_reply_config": local_reply_config(),
        "route_config": {
            "name": "public",
            "virtual_hosts": [
                {
                    "name": "public",
                    "domains": ["*"],
                    "routes": [
                        *_preflight(inputs.settings.allowed_origins),
                        *routes(inputs.contract, inputs.settings.max_body_bytes),
                    ],
                    "typed_per_filter_config": _cors_policy(inputs.settings.allowed_origins),
                }
            ],
            "response_headers_to_add": [
                _header_if_absent("cache-control", "no-store"),
                # What a guest's file holds must not be run by a browser.
                _header_if_absent("x-content-type-options", "nosniff"),
            ],
        },
        "http_filters": _filters(inputs),
    }
    if inputs.settings.access_log:
        config["access_log"] = [_access_log()]
    return config


def _header_if_absent(key: str, value: str) -> Config:
    return {"header": {"key": key, "value": value}, "append_action": "ADD_IF_ABSENT"}


def _filters(inputs: Inputs) -> list[Config]:
    lua = resources.files("sendense_gateway").joinpath("errors.lua").read_text()
    cors = [{"name": CORS, "typed_config": {"@type": f"{_TYPES}.filters.http.cors.v3.Cors"}}]
    return [
        *(cors if inputs.settings.allowed_origins else []),
        # Answers pass the filters backwards: errors get their shape before they are compressed.
        _compressor(),
        {
            "name": "envoy.filters.http.lua",
            "typed_config": {
                "@type": f"{_TYPES}.filters.http.lua.v3.Lua",
                "default_source_code": {"inline_string": lua},
            },
        },
        {"name": JWT, "typed_config": token_filter(inputs.settings)},
        {
            "name": BUFFER,
            "typed_config": {
                "@type": f"{_TYPES}.filters.http.buffer.v3.Buffer",
                # The transcoder's own limit does not bound a body that it converts as it arrives.
                "max_request_bytes": inputs.settings.max_body_bytes,
            },
        },
        {"name": TRANSCODER, "typed_config": _transcoder(inputs)},
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router", "suppress_envoy_headers": True},
        },
    ]


def _preflight(origins: list[str]) -> list[Config]:
    """Returns the route of browsers' preflight requests; the CORS filter answers, and only on a route that leads on."""
    if not origins:
        return []
    asks = [
        {"name": ":method", "string_match": {"exact": "OPTIONS"}},
        {"name": "access-control-request-method", "present_match": True},
    ]
    return [
        {
            "match": {"prefix": "/", "headers": asks},
            "route": {"cluster": PAGES_CLUSTER},
            "typed_per_filter_config": NO_TRANSCODING,
        }
    ]


def _cors_policy(origins: list[str]) -> Config:
    """Returns which pages may call the API; none unless they are named, so browsers keep them away from it."""
    if not origins:
        return {}
    return {
        CORS: {
            "@type": f"{_TYPES}.filters.http.cors.v3.CorsPolicy",
            "allow_origin_string_match": [{"exact": origin} for origin in origins],
            "allow_methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
            "allow_headers": "authorization, content-type, range",
            "expose_headers": "x-request-id, content-range, etag",
            "max_age": "600",
            # Tokens are sent in a header by the page itself; a browser's own credentials are never asked for.
            "allow_credentials": False,
        }
    }


def _compressor() -> Config:
    return {
        "name": "envoy.filters.http.compressor",
        "typed_config": {
            "@type": f"{_TYPES}.filters.http.compressor.v3.Compressor",
            "response_direction_config": {
                "common_config": {
                    "min_content_length": 1024,
                    # Not server-sent events, which a compressor would hold back, and not guests' files.
                    "content_type": ["application/json", "text/html", "text/css", "text/javascript"],
                }
            },
            "compressor_library": {
                "name": "gzip",
                "typed_config": {"@type": f"{_TYPES}.compression.gzip.compressor.v3.Gzip"},
            },
        },
    }


def _transcoder(inputs: Inputs) -> Config:
    return {
        "@type": f"{_TYPES}.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": str(inputs.descriptor),
        "services": list(inputs.contract.rest_services),
        # Routes are those of the REST paths, not of the gRPC paths that the transcoder makes of them.
        "match_incoming_request_route": True,
        "convert_grpc_status": True,
        "query_param_unescape_plus": True,
        "max_request_body_size": inputs.settings.max_body_bytes,
        "max_response_body_size": _MAX_ANSWER_BYTES,
        "request_validation_options": {
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        "print_options": {
            "preserve_proto_field_names": True,
            "always_print_primitive_fields": True,
            "stream_newline_delimited": True,
            "stream_sse_style_delimited": True,
        },
    }


def _access_log() -> Config:
    facts = {
        "event": "request",
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "subject": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:payload:sub)%",
        "token_id": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:payload:jti)%",
        "from": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
        # Without its query, where a token would be if somebody puts one there.
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "service": "%UPSTREAM_CLUSTER%",
        "milliseconds": "%DURATION%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
    }
    return {
        "name": "envoy.access_loggers.stderr",
        "typed_config": {
            "@type": f"{_TYPES}.access_loggers.stream.v3.StderrAccessLog",
            "log_format": {"json_format": facts},
        },
    }


def _cluster(name: str, socket: Path, settings: GatewaySettings | None = None, protocol: str = "") -> Config:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    remote = settings.peers.get(name) if settings else None
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {
            "thresholds": [{"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 1024}]
        },
        **(_remote(name, remote, mtls_folder(settings), protocol) if settings and remote else {}),
    }


def _remote(name: str, address: str, folder: Path, protocol: str) -> Config:
    """Returns what makes a cluster another machine's: its address, and mutual TLS as between services."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
    tls = {
        "@type": f"{_TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": host,
        "common_tls_context": {
            "alpn_protocols": [protocol],
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(folder / "node.crt")},
                    "private_key": {"filename": str(folder / "node.key")},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(folder / "ca.crt")},
                "match_typed_subject_alt_names": [
                    {"san_type": kind, "matcher": {"exact": host}} for kind in ("DNS", "IP_ADDRESS")
                ],
            },
        },
    }
    return {
        "type": "STRICT_DNS",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }


def _grpc_cluster(name: str, settings: GatewaySettings) -> Config:
    protocol = f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions"
    http2 = {"initial_stream_window_size": 1 << 20, "initial_connection_window_size": 4 << 20}
    return {
        **_cluster(name, settings.socket(name), settings, "h2"),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": protocol,
                "explicit_http_config": {"http2_protocol_options": http2},
            }
        },
    }
