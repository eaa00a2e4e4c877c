use super::*;
use crate::accesslog::line;

const ID: &str = "01a20791-8327-7764-a3ea-7224f6c98036";
/// 2026-11-23T08:41:46.535477 UTC.
const START: u64 = 1_795_423_306_535_477;

fn shape() -> Shape {
    Shape { project: "parapet".to_owned(), ..Shape::default() }
}

/// A record of a plain success, changed by `patch`.
fn read(patch: Value) -> Line {
    let mut record = json!({
        "v": 1, "id": ID, "start_us": START, "end_us": START + 900_000, "api": "chat_completions", "status": 200,
        "tenant": "acme", "user": "alice", "policy": "default", "model": "llama", "stream": true,
        "messages": [{"role": "user", "content": "hi"}], "params": {"temperature": 0.5, "max_tokens": 100},
        "answers": [{"content": "hello", "finish_reason": "stop"}], "first_token_us": START + 250_500,
        "usage": {"prompt": 12, "completion": 3, "cached": 4}, "cost_nanousd": 1_500,
        "attempts": [{"provider": "vllm", "model": "meta/llama", "start_us": START + 1000,
            "first_token_us": START + 250_000, "end_us": START + 890_000, "status": 200, "outcome": "ok"}],
    });
    for (key, value) in patch.as_object().unwrap() {
        record[key] = value.clone();
    }
    line::parse(line::tests::line(&record.to_string()).as_bytes()).unwrap().0
}

fn runs(patch: Value) -> Vec<Value> {
    tree(&read(patch), &shape()).iter().map(Run::json).collect()
}

#[test]
fn a_plain_success_is_a_root_and_its_model_run() {
    let runs = runs(json!({}));
    assert_eq!(runs.len(), 2);
    let (root, llm) = (&runs[0], &runs[1]);
    let child = llm["id"].as_str().unwrap();
    assert_eq!(root["dotted_order"], format!("20261123T084146535477Z{ID}"));
    assert_eq!(llm["dotted_order"], format!("20261123T084146535477Z{ID}.20261123T084146536477Z{child}"));
    assert_eq!((&root["id"], &root["trace_id"], root.get("parent_run_id")), (&json!(ID), &json!(ID), None));
    assert_eq!((&llm["trace_id"], &llm["parent_run_id"]), (&json!(ID), &json!(ID)));
    assert_eq!((&root["name"], &root["run_type"]), (&json!("chat-request"), &json!("chain")));
    assert_eq!((&llm["name"], &llm["run_type"]), (&json!("chat meta/llama"), &json!("llm")));
    assert_eq!(root["session_name"], "parapet");
    assert_eq!(root["start_time"], "2026-11-23T08:41:46.535477+00:00");
    assert_eq!(root["end_time"], "2026-11-23T08:41:47.435477+00:00");
    assert_eq!(root["inputs"], json!({"messages": [{"role": "user", "content": "hi"}]}));
    assert_eq!(root["outputs"], json!({"messages": [{"role": "assistant", "content": "hello"}]}));
    assert_eq!(root["tags"], json!(["provider:vllm"]));
    assert_eq!(root.get("error"), None);
    assert_eq!(
        root["extra"]["metadata"],
        json!({
            "tenant": "acme", "user": "alice", "policy": "default", "api": "chat_completions", "route": "/v1/chat/completions", "model": "llama",
            "stream": true, "status": 200, "attempts": 1, "client_aborted": false, "finish_reason": "stop",
            "provider": "vllm", "first_token_ms": 250.5, "input_tokens": 12, "output_tokens": 3, "cost_usd": 1.5e-6,
        })
    );
    assert_eq!(llm["events"], json!([{"name": "new_token", "time": "2026-11-23T08:41:46.785477+00:00"}]));
    assert_eq!(llm["outputs"]["choices"][0]["message"]["content"], "hello");
    assert_eq!(
        llm["outputs"]["usage_metadata"],
        json!({"input_tokens": 12, "output_tokens": 3, "total_tokens": 15,
            "input_token_details": {"cache_read": 4}, "total_cost": 1.5e-6})
    );
    assert_eq!(llm["extra"]["metadata"]["ls_provider"], "vllm");
    assert_eq!(llm["extra"]["metadata"]["ls_model_name"], "meta/llama");
    assert_eq!(llm["extra"]["metadata"]["ls_temperature"], 0.5);
    assert_eq!(
        llm["extra"]["invocation_params"],
        json!({"model": "meta/llama", "stream": true, "temperature": 0.5, "max_tokens": 100})
    );
}

#[test]
fn guards_cache_and_failover_are_children_within_their_parents_time() {
    let runs = runs(json!({
        "session": "s-1", "feature": "search",
        "input_guard": {"mode": "parallel", "verdict": "safe", "action": "pass", "score": 0.01, "model": "guard",
            "calls": 1, "start_us": START - 5, "end_us": START + 20_000},
        "output_guard": {"mode": "hold", "verdict": "unsafe", "action": "flag", "categories": ["S1"], "model": "guard",
            "calls": 3, "start_us": START + 300_000, "end_us": START + 800_000},
        "cache": {"outcome": "miss", "key": "ab"},
        "attempts": [
            {"provider": "vllm", "model": "m", "start_us": START, "status": 503, "outcome": "status"},
            {"provider": "openai", "model": "gpt", "start_us": START + 100, "status": 200, "outcome": "ok"},
        ],
    }));
    let names: Vec<_> = runs.iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["chat-request", "input-guard", "cache-lookup", "chat m", "chat gpt", "output-guard"]);
    assert_eq!(runs[0]["tags"], json!(["flagged:output", "cache:miss", "provider:openai", "failover"]));
    for run in &runs {
        assert_eq!(run["extra"]["metadata"]["session_id"], "s-1");
        assert!(run["start_time"].as_str() >= runs[0]["start_time"].as_str());
        assert!(run["end_time"].as_str() >= run["start_time"].as_str());
        let order = run["dotted_order"].as_str().unwrap();
        assert!(
            order.ends_with(run["id"].as_str().unwrap()) && order.starts_with(&format!("20261123T084146535477Z{ID}"))
        );
    }
    for index in [1, 2, 5] {
        assert_eq!(runs[index]["extra"]["metadata"]["ls_message_view_exclude"], true);
    }
    assert_eq!(runs[3]["error"], "the provider answered with status 503");
    assert_eq!(runs[3]["outputs"], json!({}));
    assert_eq!(runs[3]["end_time"], runs[4]["start_time"]);
    assert_eq!(runs[4]["outputs"]["choices"][0]["finish_reason"], "stop");
    assert_eq!(runs[0].get("error"), None);
    let mut ids: Vec<_> = runs.iter().map(|run| run["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), runs.len());
}

#[test]
fn failures_are_errors_and_refusals_are_not() {
    let unsafe_block = json!({"verdict": "unsafe", "action": "block", "categories": ["S1"]});
    let failed_block = json!({"verdict": "failed", "action": "block"});
    for (patch, error, tags) in [
        (
            json!({"status": 403, "reason": "content_blocked", "input_guard": unsafe_block}),
            false,
            json!(["blocked:input"]),
        ),
        (
            json!({"status": 200, "reason": "content_blocked", "output_guard": unsafe_block}),
            false,
            json!(["blocked:output"]),
        ),
        (json!({"status": 503, "reason": "guard_unavailable", "input_guard": failed_block}), true, json!(null)),
        (json!({"status": 429, "reason": "rate_limit_exceeded"}), false, json!(null)),
        (json!({"status": 429, "reason": "budget_exceeded"}), false, json!(null)),
        (json!({"status": 429}), true, json!(null)),
        (json!({"status": 400, "reason": "invalid_json"}), true, json!(null)),
        (json!({"status": 502, "reason": "upstream_error"}), true, json!(null)),
        (json!({"status": 504, "reason": "upstream_timeout", "client_aborted": true}), true, json!(null)),
        (json!({"status": 200, "truncated": true}), true, json!(null)),
        (json!({"status": 200, "truncated": true, "client_aborted": true}), false, json!(null)),
        (json!({"status": 0, "client_aborted": true}), false, json!(null)),
        (json!({"status": 0}), true, json!(null)),
    ] {
        let mut patch = patch;
        patch["attempts"] = json!([]);
        let root = &runs(patch.clone())[0];
        assert_eq!(root.get("error").is_some(), error, "{patch}");
        assert_eq!(root.get("tags").unwrap_or(&Value::Null), &tags, "{patch}");
    }
}

#[test]
fn a_replaced_answer_is_not_put_into_the_models_mouth() {
    let runs = runs(json!({
        "answers": [{"content": "I'm unable to provide a response to that request.", "finish_reason": "content_filter"}],
        "output_guard": {"verdict": "unsafe", "action": "block", "start_us": START + 1}, "reason": "content_blocked",
    }));
    assert_eq!(runs[0]["extra"]["metadata"]["blocked"], "output");
    assert_eq!(runs[0]["extra"]["metadata"]["finish_reason"], "content_filter");
    assert_eq!(runs[1]["outputs"].get("choices"), None);
    assert_eq!(runs[1]["extra"]["metadata"]["output_replaced"], true);
    assert_eq!(runs[1]["outputs"]["usage_metadata"]["total_tokens"], 15);
}

#[test]
fn hidden_content_is_in_no_run() {
    let secret = "xyzzy";
    let line = read(json!({
        "messages": [{"role": "user", "content": secret}],
        "params": {"temperature": 1, "tools": [{"name": secret}], "stop": secret},
        "answers": [{"content": secret, "reasoning": secret, "finish_reason": "stop"}, {"content": secret}],
        "cache": {"outcome": "miss"}, "input_guard": {"verdict": "safe"},
    }));
    let shape = Shape { hide_inputs: true, hide_outputs: true, ..shape() };
    let runs: Vec<_> = tree(&line, &shape).iter().map(Run::json).collect();
    for run in &runs {
        assert!(!run.to_string().contains(secret), "{run}");
    }
    assert_eq!(runs[3]["extra"]["metadata"]["usage_metadata"]["total_tokens"], 15);
    assert_eq!(runs[3]["extra"]["invocation_params"]["temperature"], 1);
}

#[test]
fn tool_calls_and_several_choices_are_kept() {
    let runs = runs(json!({"answers": [
        {"tool_calls": [{"id": "c1", "name": "f", "arguments": "{}"}], "finish_reason": "tool_calls"},
        {"content": "other", "finish_reason": "stop"},
    ]}));
    assert_eq!(
        runs[0]["outputs"]["messages"],
        json!([{"role": "assistant", "content": null,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}])
    );
    assert_eq!(runs[0]["outputs"]["choices"][1]["message"]["content"], "other");
}

#[test]
fn a_replay_makes_the_same_runs() {
    let patch = json!({"cache": {"outcome": "miss"}, "input_guard": {"verdict": "safe"}});
    assert_eq!(runs(patch.clone()), runs(patch));
}

#[test]
fn a_callers_trace_is_joined() {
    let caller = "20261123T084146000000Z0198f0c1-0000-7000-8000-000000000001";
    for run in runs(json!({"langsmith_parent": caller})) {
        assert_eq!(run["trace_id"], "0198f0c1-0000-7000-8000-000000000001");
        assert!(run["dotted_order"].as_str().unwrap().starts_with(&format!("{caller}.20261123T084146535477Z{ID}")));
    }
    assert_eq!(runs(json!({"langsmith_parent": "nonsense"}))[0]["trace_id"], ID);
}

#[test]
fn the_slower_of_two_racing_attempts_is_no_failure() {
    let runs = runs(json!({"attempts": [
        {"provider": "openai", "model": "gpt", "start_us": START, "end_us": START + 50, "status": 200, "outcome": "ok"},
        {"provider": "vllm", "model": "m", "start_us": START + 10, "end_us": START + 60, "outcome": "lost"},
    ]}));
    assert_eq!(runs[0]["tags"], json!(["provider:openai", "failover", "hedged"]));
    assert_eq!(runs[1]["outputs"]["choices"][0]["message"]["content"], "hello");
    assert_eq!((runs[2].get("error"), &runs[2]["outputs"]), (None, &json!({})));
}

#[test]
fn a_rule_can_select_by_what_the_guards_said() {
    let guard = |score: f64, categories: &[&str]| {
        json!({"mode": "hold", "verdict": "unsafe", "action": "flag",
        "score": score, "categories": categories, "model": "guard"})
    };
    let runs = runs(json!({"input_guard": guard(0.2, &["S9", "S1"]), "output_guard": guard(0.7, &["S1"])}));
    let metadata = &runs[0]["extra"]["metadata"];
    assert_eq!(metadata["categories"], json!(["S1", "S9"]));
    assert_eq!((&metadata["guard_score"], &metadata["guard_model"]), (&json!(0.7), &json!("guard")));
    assert_eq!(metadata["input_guard_categories"], json!(["S9", "S1"]));
}

#[test]
fn texts_that_a_policy_withholds_leave_as_keyed_hashes_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let key = Arc::new(Key::load_or_make(&dir.path().join("key")).unwrap());
    let digest = "d1".repeat(32);
    for (content, digests, shows) in [("hash", true, true), ("none", false, false)] {
        let mut record = json!({"content": content, "messages": null, "params": {"seed": 7},
            "answers": [{"content": "", "finish_reason": "stop"}]});
        if digests {
            record["prompt_digest"] = json!(digest);
            record["answer_digest"] = json!(digest);
        }
        let runs: Vec<_> =
            tree(&read(record), &Shape { key: Some(Arc::clone(&key)), ..shape() }).iter().map(Run::json).collect();
        for run in &runs {
            assert_eq!((&run["inputs"], &run["outputs"]), (&json!({}), &json!({})));
            let hash = run["extra"]["metadata"]["prompt_hash"].as_str();
            assert_eq!(hash.is_some(), shows);
            assert!(hash.is_none_or(|hash| hash.len() == 64 && hash != digest), "the digest itself can be guessed at");
            assert!(!run.to_string().contains(&digest));
        }
        assert_eq!(runs[0]["extra"]["metadata"]["answer_hash"].is_string(), shows);
        assert_eq!(runs[0]["extra"]["metadata"]["finish_reason"], "stop");
        assert_eq!(runs[1]["extra"]["metadata"]["usage_metadata"]["total_tokens"], 15);
    }
}

#[test]
fn each_attempt_has_its_own_tokens_and_cost_and_they_add_up() {
    let attempt = |provider: &str, outcome: &str, usage: Value, cost: u64, output: u64| {
        json!({"provider": provider, "model": "m", "start_us": START, "end_us": START + 1, "status": 200,
            "outcome": outcome, "usage": usage, "cost_nanousd": cost, "output_nanousd": output})
    };
    let runs = runs(json!({
        "usage": {"prompt": 12, "completion": 3, "cached": 4}, "cost_nanousd": 12_500,
        "attempts": [
            {"provider": "vllm", "model": "m", "start_us": START, "status": 503, "outcome": "status"},
            attempt("vllm", "lost", json!({"prompt": 10, "completion": 0, "estimated": true}), 1_000, 0),
            attempt("openai", "ok", json!({"prompt": 12, "completion": 3, "cached": 4}), 11_500, 9_000),
        ],
    }));
    let usage = |run: &Value| run["outputs"]["usage_metadata"].clone();
    assert_eq!(usage(&runs[1]), Value::Null);
    assert_eq!(
        usage(&runs[2]),
        json!({"input_tokens": 10, "output_tokens": 0, "total_tokens": 10,
            "total_cost": 1e-6, "input_cost": 1e-6, "output_cost": 0.0})
    );
    assert_eq!(runs[2]["extra"]["metadata"]["usage_estimated"], true);
    assert_eq!(
        usage(&runs[3]),
        json!({"input_tokens": 12, "output_tokens": 3, "total_tokens": 15, "input_token_details": {"cache_read": 4},
            "total_cost": 11.5e-6, "input_cost": 2.5e-6, "output_cost": 9e-6})
    );
    let total: f64 = runs.iter().filter_map(|run| usage(run)["total_cost"].as_f64()).sum();
    assert_eq!(runs[0]["extra"]["metadata"]["cost_usd"].as_f64(), Some(total));
}

#[test]
fn equal_prompts_have_the_hash_that_a_policy_without_content_gives_them() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { key: Some(Arc::new(Key::load_or_make(&dir.path().join("key")).unwrap())), ..shape() };
    let hash = |patch| tree(&read(patch), &shape)[0].json()["extra"]["metadata"]["prompt_hash"].clone();
    let messages = json!([{"role": "user", "content": "hi"}]);
    let digest = parapet_engine::privacy::prompt_digest(&serde_json::value::to_raw_value(&messages).unwrap());
    let full = hash(json!({"messages": messages}));
    assert!(full.is_string() && full != json!(digest));
    assert_eq!(hash(json!({"messages": null, "content": "hash", "prompt_digest": digest})), full);
    assert_ne!(hash(json!({"messages": [{"role": "user", "content": "ho"}]})), full);
    assert_eq!(hash(json!({"messages": null, "content": "none"})), Value::Null);
}

#[test]
fn what_rules_select_by_is_on_every_run() {
    for run in runs(json!({"revision": "00aa11bb22cc33dd", "session": "s", "cache": {"outcome": "miss"}})) {
        let metadata = &run["extra"]["metadata"];
        for (key, value) in [("revision_id", "00aa11bb22cc33dd"), ("policy", "default"), ("session_id", "s")] {
            assert_eq!(metadata[key], value, "{run}");
        }
    }
}
