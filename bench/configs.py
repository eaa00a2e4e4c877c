"""The two Envoys that are compared, both made from the configuration that operators get."""

import copy
import hashlib
import json
import os
import subprocess

OPEN, WHOLE, HOLD = "sk-demo-open", "sk-bench-whole", "sk-bench-hold"
PARALLEL, ASYNC = "sk-bench-parallel", "sk-bench-async"
HEDGED = "sk-bench-hedged"
HEDGE_AFTER_MS, HEDGE_PERCENT = 100, 10

# Limits that are counted and never reached.
LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12}
GUARD = {"timeout_ms": 5000, "on_failure": "closed", "threshold": 0.5}
POLICIES = {
    # Key, local quota, exact cache (every request is a miss), a verdict that is remembered, record, provider filter.
    WHOLE: {"limits": LIMITS, "cache": {"ttl_s": 3600}, "input_guard": {"mode": "parallel", **GUARD}},
    # The windows as they are shipped.
    HOLD: {"output_guard": {"mode": "hold", "window_tokens": [8, 16, 32], **GUARD}},
    ASYNC: {"output_guard": {"mode": "async", "window_tokens": [8, 16, 32], **GUARD}},
    HEDGED: {"hedge_after_ms": HEDGE_AFTER_MS, "hedge_budget_percent": HEDGE_PERCENT},
    PARALLEL: {"input_guard": {"mode": "parallel", **GUARD}},
}


def rendered(rig, upstream, listener, admin, data):
    """`parapet render` of envoy/envoy.yaml, as a value."""
    url = f"http://127.0.0.1:{upstream}"
    environment = dict(
        os.environ, PARAPET_CONFIG="envoy/envoy.yaml", PARAPET_DATA_DIR=data, PARAPET_PORT=str(listener),
        PARAPET_ADMIN_PORT=str(admin), PARAPET_SIDECAR_URL="http://127.0.0.1:9", VLLM_URL=url, LLAMAGUARD_URL=url,
        OPENAI_BASE_URL=url + "/v1",
        # The rig serves models only.
        VLLM_HEALTH_PATH="off")
    for name in ("VLLM_MODEL", "OPENAI_MODEL", "LLAMAGUARD_MODEL", "PARAPET_BIND", "PARAPET_ADMIN_BIND"):
        environment.pop(name, None)
    yaml = subprocess.run([os.environ["PARAPET_BIN"], "render"], env=environment, check=True, capture_output=True).stdout
    return json.loads(subprocess.run([rig, "json"], input=yaml, check=True, capture_output=True).stdout)


def _manager(config):
    return config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def _upstream_options(config):
    for cluster in config["static_resources"]["clusters"]:
        options = cluster.get("typed_extension_protocol_options", {})
        yield options.get("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", {})


def _sections(config):
    """Parapet's own section, in each of the filters."""
    filters = list(_manager(config)["http_filters"])
    for options in _upstream_options(config):
        filters += options.get("http_filters", [])
    for entry in filters:
        if entry["name"].startswith("parapet."):
            yield entry["typed_config"]["config"]["configuration"]["value"]


def bare(config):
    """The same listener, routes, retries, aggregate and members; no filter of ours and no access log."""
    config = copy.deepcopy(config)
    manager = _manager(config)
    manager["http_filters"] = [entry for entry in manager["http_filters"] if not entry["name"].startswith("parapet.")]
    manager.pop("access_log")
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        if route.get("route", {}).pop("inline_cluster_specifier_plugin", None):
            route["route"]["cluster"] = "vllm_then_openai"
    for options in _upstream_options(config):
        options.pop("http_filters", None)
    return config


def gateway(config):
    """As it is shipped, with the keys of these policies, and without the sidecar: what is measured makes no call to it."""
    config = copy.deepcopy(config)
    for section in _sections(config):
        section.pop("sidecar", None)
        for key, policy in POLICIES.items():
            digest = hashlib.sha256(key.encode()).hexdigest()
            section["keys"].append({"sha256": digest, "tenant": "lab", "user": key, "policy": key})
            section["policies"][key] = policy
    return config
