//! TLS towards a cluster: on for https, off for http.

use std::path::Path;

use serde_yaml_ng::{Mapping, Value};

use super::document::text;
use super::endpoint::Endpoint;
use super::render::{path, put};

const SOCKET: &str = "envoy.transport_sockets.tls";
const CONTEXT: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
/// Debian's bundle, in Envoy's own image too.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Makes a cluster speak what its endpoints' scheme says. A TLS section already there keeps what is not about the
/// server's name, such as a client certificate.
pub(super) fn apply(cluster: &mut Mapping, endpoints: &[Endpoint], ca_file: Option<&Path>) {
    if !endpoints.iter().any(|endpoint| endpoint.tls) {
        cluster.shift_remove("transport_socket");
        return;
    }
    let mut names: Vec<&Endpoint> = Vec::new();
    for endpoint in endpoints {
        if !names.iter().any(|known| known.host == endpoint.host) {
            names.push(endpoint);
        }
    }
    edit(cluster, "transport_socket", |socket| {
        if text(socket, "name") != Some(SOCKET) {
            socket.clear();
            put(socket, "name", SOCKET);
        }
        edit(socket, "typed_config", |context| {
            put(context, "@type", CONTEXT);
            put_server_name(context, &names);
            edit(context, "common_tls_context", |common| {
                edit(common, "validation_context", |validation| put_validation(validation, &names, ca_file));
            });
        });
    });
}

fn put_server_name(context: &mut Mapping, names: &[&Endpoint]) {
    context.shift_remove("sni");
    context.shift_remove("auto_host_sni");
    match names {
        // An address is never sent as a server name (RFC 6066, section 3).
        [only] if only.is_address() => {}
        [only] => put(context, "sni", only.host.as_str()),
        // Each endpoint's `hostname`.
        _ => put(context, "auto_host_sni", true),
    }
}

fn put_validation(validation: &mut Mapping, names: &[&Endpoint], ca_file: Option<&Path>) {
    match ca_file {
        Some(file) => put(validation, "trusted_ca", one("filename", path(file))),
        None if !validation.contains_key("trusted_ca") => put(validation, "trusted_ca", one("filename", SYSTEM_CA)),
        None => {}
    }
    let sans: Vec<Value> = names
        .iter()
        .map(|endpoint| {
            let mut san = one("san_type", if endpoint.is_address() { "IP_ADDRESS" } else { "DNS" });
            put(&mut san, "matcher", one("exact", endpoint.host.as_str()));
            Value::from(san)
        })
        .collect();
    put(validation, "match_typed_subject_alt_names", sans);
}

fn one(key: &str, value: impl Into<Value>) -> Mapping {
    Mapping::from_iter([(Value::from(key), value.into())])
}

/// Edits the mapping under a key, an empty one when it is missing or something else.
fn edit(mapping: &mut Mapping, key: &str, change: impl FnOnce(&mut Mapping)) {
    let mut inner = match mapping.get_mut(key) {
        Some(Value::Mapping(inner)) => std::mem::take(inner),
        _ => Mapping::new(),
    };
    change(&mut inner);
    put(mapping, key, inner);
}
