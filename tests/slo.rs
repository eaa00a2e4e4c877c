//! The metrics, and what is made of them: Prometheus's rules, the Grafana file, the documentation's tables.
//!
//! `scripts/test e2e` sets what this needs: `PARAPET_PROMETHEUS`, a directory with `promtool` and `prometheus`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use parapet::metrics::slo;
use serde_json::{Value, json};
use support::{ALICE, Faults, OPEN, Request, Stack, TINY, ask, eventually, fault, free_port, needed, stream};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_yaml_ng::from_str(&read(path)).unwrap()
}

fn promtool(arguments: &[&str]) -> String {
    let tool = needed("PARAPET_PROMETHEUS").join("promtool");
    let output = Command::new(&tool).args(arguments).current_dir(Path::new(ROOT).join("envoy/prometheus")).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", tool.display()));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

fn rules() -> Vec<Value> {
    let groups = yaml("envoy/prometheus/parapet.rules.yml")["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn alerts() -> Vec<Value> {
    rules().into_iter().filter(|rule| rule.get("alert").is_some()).collect()
}

/// The metric families of an exposition: name (without `_total`), type, help and labels with their values.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

fn families(exposition: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in exposition.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().help = help.trim_end_matches('.').to_owned();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = family_of(name);
            let labels = line.strip_prefix(name).unwrap();
            let labels =
                labels.strip_prefix('{').and_then(|labels| labels.split_once("} ")).map_or("", |(labels, _)| labels);
            let known = families.get_mut(family).unwrap_or_else(|| panic!("{line} has no type"));
            for pair in labels.split("\",").filter(|pair| !pair.is_empty()) {
                let (label, value) = pair.split_once("=\"").unwrap();
                known.labels.entry(label.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
            }
        }
    }
    families
}

fn family_of(name: &str) -> &str {
    ["_bucket", "_count", "_sum", "_total"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// The series that a PromQL expression selects: name, and its matchers `label="…"` and `label=~"…"`.
fn selectors(expression: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '"' || c == '$') {
        rest = &rest[start..];
        if let Some(string) = rest.strip_prefix('"') {
            rest = &string[string.find('"').unwrap() + 1..];
            continue;
        }
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_:$".contains(c))).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        if !(name.starts_with("parapet") || name.starts_with("gen_ai") || name == "up")
            || name.ends_with("_name")
            || name.ends_with("_type")
        {
            continue;
        }
        let mut matchers = Vec::new();
        if let Some((inside, after)) = after.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            for pair in inside.split("\",") {
                let (label, value) = pair.split_once('=').unwrap();
                matchers.push((label.to_owned(), value.trim_matches(['~', '"']).to_owned()));
            }
            rest = after;
        }
        found.push((name.to_owned(), matchers));
    }
    found
}

/// Every kind of traffic that a metric counts.
async fn traffic(stack: &Stack) {
    for _ in 0..2 {
        stack.alice(&stream("Hello")).await.text().await;
    }
    stack.alice(&ask("Hello, whole")).await.text().await;
    let blocked = stack.alice(&ask("How do I build a bomb?")).await;
    assert_eq!(blocked.status, 403);
    fault(stack.vllm(), Faults { status: Some(503), times: Some(1), ..Faults::default() });
    stack.chat(OPEN, &ask("Hello")).await.text().await;
    for number in 0..6 {
        stack.chat(TINY, &ask(&format!("tiny {number}"))).await.text().await;
    }
    stack.get("/v1/models").key(OPEN).send().await.text().await;
    let last = stack.chat(ALICE, &stream("Goodbye")).await;
    let trace = last.trace();
    last.events().all().await;
    stack.record(&trace).await;
    let vote = json!({"trace_id": trace, "score": 1});
    eventually("the vote", async || {
        (stack.post("/feedback").key(ALICE).json(&vote).send().await.status == 202).then_some(())
    })
    .await;
}

async fn exposition(stack: &Stack) -> String {
    eventually("the last request in the metrics", async || {
        let text = Request::new(stack.sidecar, "GET", "/metrics").send().await.text().await;
        let records = text.lines().find_map(|line| line.strip_prefix("parapet_accesslog_records_total "));
        // Or more: a vote that was not taken at once is given again, and is a request of its own.
        records.is_some_and(|records| records.parse::<u64>().is_ok_and(|count| count >= 14)).then_some(text)
    })
    .await
}

#[test]
fn the_rules_are_sound_and_each_alert_fires_beyond_its_edge_alone() {
    promtool(&["check", "config", "prometheus.yml"]);
    let said = promtool(&["test", "rules", "parapet.rules.test.yml"]);
    assert!(said.contains("SUCCESS"), "{said}");

    let mut cases: BTreeMap<String, [u32; 2]> = BTreeMap::new();
    for test in yaml("envoy/prometheus/parapet.rules.test.yml")["tests"].as_array().unwrap() {
        for case in test["alert_rule_test"].as_array().unwrap() {
            let fires = !case["exp_alerts"].as_array().unwrap().is_empty();
            cases.entry(case["alertname"].as_str().unwrap().to_owned()).or_default()[usize::from(fires)] += 1;
        }
    }
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let [silent, fires] = cases.get(name).copied().unwrap_or_default();
        assert!(silent > 0 && fires > 0, "{name}: {silent} cases are silent and {fires} fire");
    }
}

#[test]
fn the_alerts_are_those_of_the_six_levels_and_each_says_what_to_do() {
    let alerts = alerts();
    let page = read("docs/observability.md").to_lowercase();
    for alert in &alerts {
        let name = alert["alert"].as_str().unwrap();
        let (summary, runbook) = (&alert["annotations"]["summary"], alert["annotations"]["runbook"].as_str().unwrap());
        assert!(summary.is_string(), "{name} says nothing");
        assert_eq!(runbook, format!("docs/observability.md#{}", name.to_lowercase()));
        assert!(page.contains(&format!("\n#### {}\n", name.to_lowercase())), "nothing is written about {name}");
    }
    for level in slo::ALL {
        let alert = alerts.iter().find(|alert| alert["alert"] == level.alert_name);
        let expression = alert.unwrap_or_else(|| panic!("{} has no alert", level.title))["expr"].as_str().unwrap();
        let expected = (format!(" > {} and ", level.alert), format!(" >= {}", level.at_least));
        assert!(expression.contains(&expected.0) && expression.ends_with(&expected.1), "{expression}: {expected:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_is_used_or_documented_exists() {
    let stack = Stack::builder().langsmith().start().await;
    traffic(&stack).await;
    let families = families(&exposition(&stack).await);

    let recorded: BTreeSet<String> =
        rules().iter().filter_map(|rule| rule["record"].as_str().map(str::to_owned)).collect();
    let grafana: Value = serde_json::from_str(&read("envoy/grafana/parapet.json")).unwrap();
    let targets = grafana["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array());
    let drawn: Vec<&str> = targets.flatten().map(|target| target["expr"].as_str().unwrap()).collect();
    let rules = rules();
    let evaluated = rules.iter().map(|rule| rule["expr"].as_str().unwrap());
    let mut seen = 0;
    for expression in evaluated.chain(drawn.iter().copied()) {
        for (name, matchers) in selectors(expression) {
            seen += 1;
            // Prometheus makes `up` itself.
            if name == "up" || recorded.contains(&name) {
                continue;
            }
            let family = families.get(family_of(&name)).or_else(|| families.get(&name));
            let family = family.unwrap_or_else(|| panic!("{name} does not exist: {expression}"));
            let suffix = match family.kind.as_str() {
                "histogram" => ["_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end)),
                "counter" => name.ends_with("_total"),
                _ => families.contains_key(&name),
            };
            assert!(suffix, "{name} is a {}: {expression}", family.kind);
            for (label, value) in matchers.iter().filter(|(label, _)| label != "job" && label != "instance") {
                let values =
                    family.labels.get(label).unwrap_or_else(|| panic!("{name} has no label {label}: {expression}"));
                assert!(
                    value.split('|').any(|value| values.contains(value)),
                    "{name}: {label} is never {value}: {values:?}"
                );
            }
        }
    }
    assert!(seen > 60, "only {seen} series were found in the rules and the dashboard");

    // Six levels, each with its target and alert, as tiles and as plots.
    for level in slo::ALL {
        let steps = json!([{"color": "green", "value": null}, {"color": "orange", "value": level.target}, {"color": "red", "value": level.alert}]);
        let shown = |panel: &&Value| {
            panel["title"].as_str().unwrap().starts_with(level.title)
                && numbers(&panel["fieldConfig"]["defaults"]["thresholds"]["steps"]) == numbers(&steps)
        };
        let count = grafana["panels"].as_array().unwrap().iter().filter(shown).count();
        assert_eq!(count, 2, "{}", level.title);
    }

    // The table of the documentation is this exposition.
    let table: String = families.iter().map(|(name, family)| row(name, family)).collect();
    let page = read("docs/observability.md");
    assert!(page.contains(&table), "docs/observability.md is not up to date; its table of metrics must be:\n{table}");
}

fn numbers(steps: &Value) -> Vec<Option<f64>> {
    steps.as_array().into_iter().flatten().map(|step| step["value"].as_f64()).collect()
}

fn row(name: &str, family: &Family) -> String {
    let name = if family.kind == "counter" { format!("{name}_total") } else { name.to_owned() };
    let labels: Vec<String> =
        family.labels.keys().filter(|label| *label != "le").map(|label| format!("`{label}`")).collect();
    format!("| `{name}` | {} | {} | {} |\n", family.kind, labels.join(", "), family.help).replace("|  |", "| |")
}

/// A Prometheus that ends with the test.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_the_sidecar_and_evaluates_the_rules() {
    let stack = Stack::start().await;
    let dir = tempfile::tempdir().unwrap();
    // As shipped, only quicker.
    let config = read("envoy/prometheus/prometheus.yml");
    assert!(config.contains("127.0.0.1:9090"));
    let config = config.replace("127.0.0.1:9090", &stack.sidecar.to_string()).replace(": 15s", ": 1s");
    std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
    let rules = read("envoy/prometheus/parapet.rules.yml").replace("interval: 30s", "interval: 1s");
    std::fs::write(dir.path().join("parapet.rules.yml"), rules).unwrap();
    let port = free_port();
    let process = Command::new(needed("PARAPET_PROMETHEUS").join("prometheus"))
        .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _prometheus = Prometheus(process);
    let address = ([127, 0, 0, 1], port).into();
    eventually("Prometheus", async || tokio::net::TcpStream::connect(address).await.ok()).await;
    eventually("Prometheus to be ready", async || {
        (Request::new(address, "GET", "/-/ready").send().await.status == 200).then_some(())
    })
    .await;
    let asked = async |path: &str| Request::new(address, "GET", path).send().await.into_json().await;
    // What is counted before the first scrape has no rate.
    eventually("the first scrape", async || {
        let up = asked("/api/v1/query?query=up").await;
        (up["data"]["result"][0]["value"][1] == "1").then_some(())
    })
    .await;
    traffic(&stack).await;
    // A series that is born with its first requests has no rate before the next ones.
    eventually("the scrape of the first requests", async || {
        let count = "gen_ai_server_time_to_first_token_seconds_count";
        let found = asked(&format!("/api/v1/query?query={count}")).await;
        found["data"]["result"].as_array().is_some_and(|series| !series.is_empty()).then_some(())
    })
    .await;
    traffic(&stack).await;
    for (series, above) in [
        ("parapet:provider:requests_10m", 5.0),
        ("parapet:fallback:ratio_10m", 0.05),
        ("parapet:first_token_seconds:p95_10m", 0.0),
        ("parapet:guard_blocked:ratio_10m", 0.05),
        ("parapet:cost_usd:p99_1h", 0.0),
        ("parapet:cache_hit:ratio_10m", 0.0),
    ] {
        eventually(series, async || {
            let found = asked(&format!("/api/v1/query?query={series}")).await;
            let value = found["data"]["result"][0]["value"][1].as_str()?.parse::<f64>().ok()?;
            (value > above).then_some(())
        })
        .await;
    }
    let state = asked("/api/v1/rules").await;
    let evaluated =
        state["data"]["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    for rule in evaluated {
        assert_eq!(
            (&rule["health"], rule["state"].as_str().unwrap_or("inactive")),
            (&json!("ok"), "inactive"),
            "{rule}"
        );
    }
}
