//! What changes with a server's replicas: whether and where they are checked, and how often a request is tried.

use serde_yaml_ng::{Mapping, Value};

use super::document::{Document, descend_mut, text};
use super::render::put;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The active health checks of a cluster, as the environment has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HealthCheck {
    Off,
    /// The path to ask for.
    Path(String),
}

impl HealthCheck {
    /// Reads a path, or `off`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Self::Off),
            path if path.starts_with('/') && !path.contains(|c: char| c.is_whitespace() || c.is_control()) => {
                Some(Self::Path(path.to_owned()))
            }
            _ => None,
        }
    }

    pub(super) fn apply(&self, cluster: &mut Mapping) {
        match self {
            Self::Off => {
                cluster.shift_remove("health_checks");
                // Without checks a new host would be waited for without end.
                if let Some(common) = cluster.get_mut("common_lb_config").and_then(Value::as_mapping_mut) {
                    common.shift_remove("ignore_new_hosts_until_first_hc");
                }
            }
            Self::Path(path) => {
                let checks = cluster.get_mut("health_checks").and_then(Value::as_sequence_mut);
                for check in checks.into_iter().flatten() {
                    if let Some(http) = descend_mut(check, &["http_health_check"]) {
                        put(http, "path", path.as_str());
                    }
                }
            }
        }
    }
}

/// Lets the chains of two that begin at a cluster of several replicas try another replica before the next provider: a
/// replica that is gone or stuck costs no call elsewhere. Longer chains and policies of the operator's own stay: Envoy
/// counts attempts alike for each provider.
pub(super) fn try_another(document: &mut Document, cluster: &str) {
    document.for_each_cluster_mut(|aggregate| {
        let members = aggregate.get("cluster_type").and_then(|kind| kind.get("typed_config")?.get("clusters"));
        let Some([first, _]) = members.and_then(Value::as_sequence).map(Vec::as_slice) else { return };
        if first.as_str() != Some(cluster) {
            return;
        }
        let options = aggregate.get_mut("typed_extension_protocol_options");
        let Some(policy) = options.and_then(|options| descend_mut(options, &[HTTP_OPTIONS, "retry_policy"])) else {
            return;
        };
        let once = |value: Option<&Value>| value.and_then(Value::as_u64) == Some(1);
        if !once(policy.get("num_retries")) {
            return;
        }
        let priorities = policy.get_mut("retry_priority").and_then(|it| descend_mut(it, &["typed_config"]));
        let Some(priorities) = priorities.filter(|it| {
            text(it, "@type").is_some_and(|it| it.ends_with(".PreviousPrioritiesConfig"))
                && once(it.get("update_frequency"))
        }) else {
            return;
        };
        put(priorities, "update_frequency", 2);
        put(policy, "num_retries", 2);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_or_off_and_nothing_else() {
        assert_eq!(HealthCheck::parse("off"), Some(HealthCheck::Off));
        assert_eq!(HealthCheck::parse("/v1/models"), Some(HealthCheck::Path("/v1/models".to_owned())));
        for wrong in ["", "health", "false", "/a b", "http://a/health", "/a\nb"] {
            assert_eq!(HealthCheck::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_retry_policy_of_the_operators_own_stays() {
        let chain = |members: &str, retries: u32, frequency: u32| {
            format!(
                "static_resources: {{clusters: [{{name: a, cluster_type: {{typed_config: {{clusters: {members}}}}}, \
                 typed_extension_protocol_options: {{{HTTP_OPTIONS}: {{retry_policy: {{num_retries: {retries}, \
                 retry_priority: {{typed_config: {{'@type': x.PreviousPrioritiesConfig, update_frequency: {frequency}}}}}}}}}}}}}]}}"
            )
        };
        let tried = |text: &str| {
            let mut document = Document::parse(text).unwrap();
            try_another(&mut document, "vllm");
            document.to_yaml()
        };
        let changed = tried(&chain("[vllm, openai]", 1, 1));
        assert!(changed.contains("num_retries: 2") && changed.contains("update_frequency: 2"), "{changed}");
        for (members, retries, frequency) in [
            ("[openai, vllm]", 1, 1),
            ("[vllm]", 1, 1),
            ("[vllm, openai, other]", 1, 1),
            ("[vllm, openai]", 3, 1),
            ("[vllm, openai]", 1, 3),
        ] {
            let text = chain(members, retries, frequency);
            assert_eq!(tried(&text), Document::parse(&text).unwrap().to_yaml(), "{members} {retries} {frequency}");
        }
    }
}
