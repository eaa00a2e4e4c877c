//! `parapet check FILE`: what Envoy and the filters would say about a configuration, without starting anything.

use serde_yaml_ng::{Mapping, Value};

use super::chains;
use super::document::{Document, text};

/// Everything that is wrong with a configuration, one finding a line; empty when nothing is.
pub(super) fn findings(document: &Document) -> Vec<String> {
    let filters = document.filters();
    if filters.is_empty() {
        return vec![
            "no Parapet filter: a Wasm filter whose `root_id` is `gateway` or `provider` was expected".to_owned(),
        ];
    }
    let mut found = Vec::new();
    for filter in filters {
        let name = text(filter, "name").or_else(|| text(filter, "root_id")).unwrap_or("?");
        let section = filter.get("configuration").and_then(|configuration| configuration.get("value"));
        let Some(section) = section.and_then(Value::as_mapping) else {
            found.push(format!(
                "{name}: `configuration.value` is missing: write the policy there, as in envoy/envoy.yaml"
            ));
            continue;
        };
        let in_section = match serde_json::to_vec(section) {
            Ok(json) => policy_finding(&json)
                .err()
                .into_iter()
                .chain(unknown_clusters(document, section))
                .chain(chains::findings(document, section))
                .collect(),
            Err(error) => vec![format!("no JSON: {error}")],
        };
        found.extend(in_section.into_iter().map(|finding| format!("{name}: {finding}")));
    }
    found.extend(unknown_members(document));
    // The filters share one section by an anchor: what is wrong with it is said once for each.
    let mut once = Vec::with_capacity(found.len());
    for finding in found {
        if !once.contains(&finding) {
            once.push(finding);
        }
    }
    once
}

/// The policy's own validation, which the filters run at load.
fn policy_finding(json: &[u8]) -> Result<(), String> {
    parapet_engine::config::Config::parse(json).map(drop).map_err(|error| error.to_string())
}

fn unknown_clusters(document: &Document, section: &Mapping) -> Vec<String> {
    let mut named: Vec<(String, &str)> = Vec::new();
    for list in ["providers", "models"] {
        let entries = section.get(list).and_then(Value::as_sequence).into_iter().flatten();
        for (index, entry) in entries.enumerate() {
            let cluster = entry.as_mapping().and_then(|entry| text(entry, "cluster"));
            named.extend(cluster.map(|cluster| (format!("{list}[{index}].cluster"), cluster)));
            let spill = entry.as_mapping().and_then(|entry| text(entry, "spill_cluster"));
            named.extend(spill.map(|cluster| (format!("{list}[{index}].spill_cluster"), cluster)));
        }
    }
    for key in ["guard", "sidecar"] {
        let cluster = section.get(key).and_then(Value::as_mapping).and_then(|entry| text(entry, "cluster"));
        named.extend(cluster.map(|cluster| (format!("{key}.cluster"), cluster)));
    }
    named.into_iter().filter_map(|(key, cluster)| unknown(document, &key, cluster)).collect()
}

/// Members of an aggregate that do not exist: Envoy accepts them and then has no host.
fn unknown_members(document: &Document) -> Vec<String> {
    let mut found = Vec::new();
    for cluster in document.clusters() {
        let name = text(cluster, "name").unwrap_or("?");
        let members = cluster
            .get("cluster_type")
            .and_then(|kind| kind.get("typed_config")?.get("clusters")?.as_sequence())
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        for (index, member) in members.enumerate() {
            found.extend(unknown(
                document,
                &format!("clusters.{name}.cluster_type.typed_config.clusters[{index}]"),
                member,
            ));
        }
    }
    found
}

fn unknown(document: &Document, key: &str, cluster: &str) -> Option<String> {
    if document.has_cluster(cluster) || document.has_dynamic_clusters() {
        return None;
    }
    let known: Vec<&str> = document.clusters().filter_map(|cluster| text(cluster, "name")).collect();
    let known = if known.is_empty() { "it is empty".to_owned() } else { format!("there are {}", known.join(", ")) };
    Some(format!("{key}: no cluster `{cluster}` in static_resources.clusters ({known})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../envoy/envoy.yaml");

    fn check(text: &str) -> Vec<String> {
        findings(&Document::parse(text).unwrap())
    }

    #[test]
    fn the_shipped_file_is_sound() {
        assert_eq!(check(SHIPPED), Vec::<String>::new());
    }

    #[test]
    fn a_missing_cluster_is_named_with_its_key_and_what_there_is() {
        let table = [
            (" cluster: only_openai\n", " cluster: only_opnai\n", "models[1].cluster: no cluster `only_opnai`"),
            ("spill_cluster: only_openai\n", "spill_cluster: rest\n", "models[0].spill_cluster: no cluster `rest`"),
            ("cluster: llamaguard\n", "cluster: guard\n", "guard.cluster: no cluster `guard`"),
            ("sidecar: {cluster: sidecar,", "sidecar: {cluster: side,", "sidecar.cluster: no cluster `side`"),
            (
                "clusters: [vllm, openai]",
                "clusters: [vllm, openia]",
                "clusters.vllm_then_openai.cluster_type.typed_config.clusters[1]: no cluster `openia`",
            ),
        ];
        for (right, wrong, expected) in table {
            assert!(SHIPPED.contains(right), "{right}");
            let found = check(&SHIPPED.replacen(right, wrong, 1));
            assert!(found.iter().any(|finding| finding.contains(expected)), "{expected}: {found:?}");
            let all = |finding: &String| finding.contains("vllm, openai, llamaguard, sidecar");
            assert!(found.iter().any(all), "{found:?}");
        }
    }

    #[test]
    fn a_mistake_in_the_policy_is_named_with_its_key() {
        let text = SHIPPED.replacen("input_guard: {mode: parallel,", "input_guard: {mode: sideways,", 1);
        let found = check(&text);
        // The gateway filter and the provider filter.
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("gateway: policies.standard.input_guard"), "{found:?}");
        assert!(found[0].contains("parallel"), "what was expected is not said: {found:?}");
    }

    #[test]
    fn clusters_that_envoy_learns_elsewhere_are_not_missed() {
        let text = SHIPPED.replacen("cluster: llamaguard\n", "cluster: guard\n", 1);
        assert_eq!(check(&format!("{text}dynamic_resources: {{cds_config: {{ads: {{}}}}}}\n")), Vec::<String>::new());
    }

    #[test]
    fn a_file_without_our_filters_or_without_their_section_is_refused() {
        assert!(check("static_resources: {}")[0].contains("no Parapet filter"));
        let bare = "static_resources: {listeners: [{f: {'@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {root_id: gateway}}}]}";
        assert!(check(bare)[0].starts_with("gateway: `configuration.value` is missing"));
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in ["", "[]", "a: [", "admin: {}"] {
            assert!(Document::parse(text).is_err(), "{text}");
        }
    }
}
