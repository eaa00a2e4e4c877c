//! What `parapet check` says of the models' chains: where Envoy's part of a chain and the filters' part disagree, both are
//! sound by themselves, and a provider is never asked.

use serde_yaml_ng::{Mapping, Value};

use super::document::{Document, text};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Envoy's, where none is written.
const NUM_RETRIES: u64 = 1;
const UPDATE_FREQUENCY: u64 = 2;
const MAX_REQUEST_BYTES: u64 = 4 << 20;

pub(super) fn findings(document: &Document, section: &Mapping) -> Vec<String> {
    let mut found = Vec::new();
    for (index, model) in entries(section, "models").enumerate() {
        let at = format!("models[{index}]");
        let clusters: Vec<&str> =
            entries(model, "chain").filter_map(|link| cluster_of(section, text(link, "provider")?)).collect();
        found.extend(not_in_order(document, &at, model, &clusters));
        found.extend(never_asked(document, &at, model));
        found.extend(no_ring(document, &at, model, &clusters));
    }
    found.extend(too_large_to_try_again(document, section));
    found
}

fn entries<'a>(mapping: &'a Mapping, key: &str) -> impl Iterator<Item = &'a Mapping> {
    mapping.get(key).and_then(Value::as_sequence).into_iter().flatten().filter_map(Value::as_mapping)
}

fn cluster_of<'a>(section: &'a Mapping, provider: &str) -> Option<&'a str> {
    text(entries(section, "providers").find(|entry| text(entry, "name") == Some(provider))?, "cluster")
}

/// The members of a model's aggregate, and the aggregate; `None`: its cluster is of another kind.
fn aggregate<'a>(document: &'a Document, model: &Mapping) -> Option<(Vec<&'a str>, &'a Mapping)> {
    let cluster = document.cluster(text(model, "cluster")?)?;
    let members = cluster.get("cluster_type")?.get("typed_config")?.get("clusters")?.as_sequence()?;
    Some((members.iter().filter_map(Value::as_str).collect(), cluster))
}

fn not_in_order(document: &Document, at: &str, model: &Mapping, chain: &[&str]) -> Option<String> {
    let (members, _) = aggregate(document, model)?;
    (members != chain).then(|| {
        format!(
            "{at}.chain: its providers' clusters are {}, and those of cluster `{}` are {}: they have to be the same, in the order of failover",
            chain.join(", "),
            text(model, "cluster").unwrap_or_default(),
            members.join(", ")
        )
    })
}

fn never_asked(document: &Document, at: &str, model: &Mapping) -> Option<String> {
    let (members, cluster) = aggregate(document, model)?;
    let others = u64::try_from(members.len()).ok()?.checked_sub(1).filter(|others| *others > 0)?;
    let name = text(cluster, "name").unwrap_or_default();
    let policy =
        cluster.get("typed_extension_protocol_options").and_then(|it| it.get(HTTP_OPTIONS)?.get("retry_policy"));
    let Some(policy) = policy else {
        // The route's policy then holds for all chains.
        return document
            .all("retry_policy")
            .is_empty()
            .then(|| format!("{at}.chain: cluster `{name}` has no retry_policy: only the first provider is asked"));
    };
    let number = |value: Option<&Value>, default| value.and_then(Value::as_u64).unwrap_or(default);
    let retries = number(policy.get("num_retries"), NUM_RETRIES);
    let frequency = policy.get("retry_priority").and_then(|it| it.get("typed_config"));
    let Some(frequency) = frequency.map(|it| number(it.get("update_frequency"), UPDATE_FREQUENCY)) else {
        return Some(format!(
            "{at}.chain: cluster `{name}` has no retry_priority: a retry may ask the same provider again"
        ));
    };
    let needed = frequency.saturating_mul(others);
    (retries < needed).then(|| {
        format!(
            "{at}.chain: cluster `{name}` gives up before its last provider: {retries} retries, {needed} needed \
             (num_retries; {frequency} attempts at each provider by update_frequency)"
        )
    })
}

fn no_ring(document: &Document, at: &str, model: &Mapping, chain: &[&str]) -> Option<String> {
    if !matches!(text(model, "affinity"), Some("prefix" | "session")) {
        return None;
    }
    let first = document.cluster(chain.first()?)?;
    let policy = text(first, "lb_policy").unwrap_or("ROUND_ROBIN");
    (!matches!(policy, "RING_HASH" | "MAGLEV")).then(|| {
        format!(
            "{at}.affinity: cluster `{}` spreads requests by {policy}, which knows no affinity: RING_HASH does",
            text(first, "name").unwrap_or_default()
        )
    })
}

/// What Envoy cannot keep it cannot send again, and it does not say so.
fn too_large_to_try_again(document: &Document, section: &Mapping) -> Option<String> {
    let largest = section.get("max_request_bytes").and_then(Value::as_u64).unwrap_or(MAX_REQUEST_BYTES);
    let kept = document.all("request_body_buffer_limit").into_iter().filter_map(Value::as_u64).min()?;
    (largest > kept / 2).then(|| {
        format!(
            "max_request_bytes: {largest} is more than half of request_body_buffer_limit ({kept}): what Envoy cannot keep is not tried at the next provider"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    const SHIPPED: &str = include_str!("../../envoy/envoy.yaml");

    fn finding(right: &str, wrong: &str) -> String {
        assert!(SHIPPED.contains(right), "{right}");
        let document = Document::parse(&SHIPPED.replace(right, wrong)).unwrap();
        check::findings(&document).first().cloned().unwrap_or_default()
    }

    #[test]
    fn a_chain_that_envoy_sees_otherwise_is_found() {
        let table = [
            (
                "clusters: [vllm, openai]",
                "clusters: [openai, vllm]",
                "those of cluster `vllm_then_openai` are openai, vllm",
            ),
            ("            num_retries: 1\n", "            num_retries: 0\n", "0 retries, 1 needed"),
            ("update_frequency: 1", "update_frequency: 2", "1 retries, 2 needed"),
            ("                update_frequency: 1\n", "", "1 retries, 2 needed"),
            (
                "            retry_priority:\n",
                "            retry_precedence:\n",
                "a retry may ask the same provider again",
            ),
            ("retry_policy:", "retry_politics:", "only the first provider is asked"),
        ];
        for (right, wrong, expected) in table {
            let found = finding(right, wrong);
            assert!(found.starts_with("gateway: models[0].chain: ") && found.contains(expected), "{wrong}: {found:?}");
        }
    }

    #[test]
    fn an_affinity_needs_a_ring() {
        let affine = "                cluster: vllm_then_openai\n                                affinity: prefix\n";
        let first = "                                cluster: vllm_then_openai\n";
        let affine = format!("                {affine}");
        let found = finding(first, &affine);
        assert!(
            found.starts_with("gateway: models[0].affinity: cluster `vllm` spreads requests by LEAST_REQUEST"),
            "{found}"
        );
        let ring = SHIPPED.replace(first, &affine).replace("lb_policy: LEAST_REQUEST", "lb_policy: RING_HASH");
        assert_eq!(check::findings(&Document::parse(&ring).unwrap()), Vec::<String>::new());
    }

    #[test]
    fn a_request_that_cannot_be_tried_again_is_found() {
        let found = finding("max_request_bytes: 4194304", "max_request_bytes: 8388609");
        assert!(found.starts_with("gateway: max_request_bytes: 8388609 is more than half"), "{found}");
        assert_eq!(finding("max_request_bytes: 4194304", "max_request_bytes: 8388608"), "");
    }
}
