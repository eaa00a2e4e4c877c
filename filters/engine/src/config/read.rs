//! How each section is read: its keys, and what is taken for a key that is not there.

use std::collections::BTreeMap;

use super::item::{Choice, Item, Read};
use super::{
    Affinity, Audit, Cache, Categories, Config, FirstToken, GuardModel, InputGuard, InputMode, Key, Limits, Link,
    Media, Model, OnFailure, OutputGuard, OutputMode, Policy, Price, Provider, Sidecar, Spill, Trace,
};
use crate::guard::Category;
use crate::guard::dialect::Dialect;
use crate::identity::{Index, KeyDigest};
use crate::record::Content;
use crate::redact::{Kind, Pattern, Rules};

const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
const BASE_PATH: &str = "/v1";
const FIRST_TOKEN: FirstToken = FirstToken {
    stream_ms: 5_000,
    json_ms: 5_000,
    per_token_ms: 15,
    deadline_ms: 120_000,
    floor_ms: 5_000,
    ceiling_ms: 5_000,
};
const HEDGE_BUDGET_PERCENT: u32 = 5;
const SIDECAR_TIMEOUT_MS: u64 = 10;
const GUARD_TIMEOUT_MS: u64 = 5_000;
const THRESHOLD: f64 = 0.5;
const WINDOW_TOKENS: [u32; 3] = [8, 16, 32];
const MAX_TEMPERATURE: f64 = 1.0;

impl Read for Config {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&[
            "max_request_bytes",
            "providers",
            "models",
            "first_token",
            "guard",
            "sidecar",
            "keys",
            "policies",
        ]);
        Self {
            max_request_bytes: section.or("max_request_bytes", MAX_REQUEST_BYTES),
            providers: section.required("providers"),
            models: section.required("models"),
            first_token: section.or("first_token", FIRST_TOKEN),
            guard: section.optional("guard"),
            sidecar: section.optional("sidecar"),
            keys: section.required("keys"),
            key_index: Index::default(),
            policies: section.required("policies"),
            revision: String::new(),
        }
    }
}

impl Read for Provider {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["name", "cluster", "authority", "base_path", "api_key_env", "price"]);
        Self {
            name: section.required("name"),
            cluster: section.required("cluster"),
            authority: section.required("authority"),
            base_path: section.or("base_path", BASE_PATH.to_owned()),
            api_key_env: section.optional("api_key_env"),
            price: section.or("price", Price::default()),
        }
    }
}

impl Read for Price {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["input", "cached", "output"]);
        Self { input: section.or("input", 0.0), cached: section.optional("cached"), output: section.or("output", 0.0) }
    }
}

impl Read for Model {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["name", "aliases", "cluster", "spill_cluster", "chain", "affinity"]);
        Self {
            name: section.required("name"),
            aliases: section.or("aliases", Vec::new()),
            cluster: section.required("cluster"),
            spill_cluster: section.optional("spill_cluster"),
            chain: section.required("chain"),
            affinity: section.or("affinity", Affinity::default()),
        }
    }
}

impl Choice for Affinity {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("none", Self::None), ("prefix", Self::Prefix), ("session", Self::Session)];
}

impl Read for Link {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["provider", "model"]);
        Self { provider: section.required("provider"), model: section.required("model") }
    }
}

impl Read for FirstToken {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["stream_ms", "json_ms", "per_token_ms", "deadline_ms", "floor_ms", "ceiling_ms"]);
        let stream_ms = section.or("stream_ms", FIRST_TOKEN.stream_ms);
        Self {
            stream_ms,
            json_ms: section.or("json_ms", FIRST_TOKEN.json_ms),
            per_token_ms: section.or("per_token_ms", FIRST_TOKEN.per_token_ms),
            deadline_ms: section.or("deadline_ms", FIRST_TOKEN.deadline_ms),
            floor_ms: section.or("floor_ms", stream_ms),
            ceiling_ms: section.or("ceiling_ms", stream_ms),
        }
    }
}

impl Read for GuardModel {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["cluster", "authority", "base_path", "model", "dialect", "api_key_env"]);
        Self {
            cluster: section.required("cluster"),
            authority: section.required("authority"),
            base_path: section.or("base_path", BASE_PATH.to_owned()),
            model: section.required("model"),
            dialect: section.or("dialect", Dialect::default()),
            api_key_env: section.optional("api_key_env"),
        }
    }
}

impl Choice for Dialect {
    const CHOICES: &'static [(&'static str, Self)] = &[
        ("llama_guard_3", Self::LlamaGuard3),
        ("llama_guard_3_1b", Self::LlamaGuard3Of1B),
        ("llama_guard_4", Self::LlamaGuard4),
        ("qwen3_guard", Self::Qwen3Guard),
        ("shield_gemma", Self::ShieldGemma),
    ];
}

impl Read for Sidecar {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["cluster", "authority", "timeout_ms"]);
        Self {
            cluster: section.required("cluster"),
            authority: section.required("authority"),
            timeout_ms: section.or("timeout_ms", SIDECAR_TIMEOUT_MS),
        }
    }
}

impl Read for Key {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["sha256", "tenant", "user", "policy"]);
        Self {
            sha256: section.required("sha256"),
            tenant: section.required("tenant"),
            user: section.required("user"),
            policy: section.required("policy"),
        }
    }
}

impl Read for KeyDigest {
    /// The error does not repeat what stands there: it may be the key itself.
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        Self::from_hex(item.text()).unwrap_or_else(|| {
            item.error("expected the key's SHA-256 as 64 hexadecimal digits: printf %s \"$KEY\" | sha256sum")
        })
    }
}

impl Read for Policy {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&[
            "models",
            "input_guard",
            "output_guard",
            "cache",
            "limits",
            "trace",
            "audit",
            "hedge_after_ms",
            "hedge_budget_percent",
            "deadline_ms",
            "spill",
        ]);
        Self {
            models: section.optional("models"),
            input_guard: section.optional("input_guard"),
            output_guard: section.optional("output_guard"),
            cache: section.optional("cache"),
            limits: section.or("limits", Limits::default()),
            trace: section.or("trace", Trace::default()),
            audit: section.or("audit", Audit::default()),
            hedge_after_ms: section.optional("hedge_after_ms"),
            hedge_budget_percent: section.or("hedge_budget_percent", HEDGE_BUDGET_PERCENT),
            deadline_ms: section.optional("deadline_ms"),
            spill: section.optional("spill"),
        }
    }
}

impl Read for Spill {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["waiting", "kv_cache"]);
        Self { waiting: section.optional("waiting"), kv_cache: section.optional("kv_cache") }
    }
}

impl Choice for InputMode {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("parallel", Self::Parallel), ("blocking", Self::Blocking), ("off", Self::Off)];
}

impl Choice for OutputMode {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("hold", Self::Hold), ("async", Self::Async), ("full", Self::Full), ("off", Self::Off)];
}

impl Choice for OnFailure {
    const CHOICES: &'static [(&'static str, Self)] = &[("closed", Self::Closed), ("open", Self::Open)];
}

impl Read for InputGuard {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["mode", "timeout_ms", "on_failure", "threshold", "categories", "media"]);
        Self {
            mode: section.required("mode"),
            timeout_ms: section.or("timeout_ms", GUARD_TIMEOUT_MS),
            on_failure: section.or("on_failure", OnFailure::default()),
            threshold: section.or("threshold", THRESHOLD),
            categories: section.or("categories", Categories::default()),
            media: section.or("media", Media::default()),
        }
    }
}

impl Choice for Media {
    const CHOICES: &'static [(&'static str, Self)] = &[("refuse", Self::Refuse), ("flag", Self::Flag)];
}

impl Read for Audit {
    fn read(item: &Item<'_>) -> Self {
        Self { text: item.section(&["text"]).or("text", false) }
    }
}

impl Read for OutputGuard {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["mode", "timeout_ms", "on_failure", "threshold", "categories", "window_tokens"]);
        Self {
            mode: section.required("mode"),
            timeout_ms: section.or("timeout_ms", GUARD_TIMEOUT_MS),
            on_failure: section.or("on_failure", OnFailure::default()),
            threshold: section.or("threshold", THRESHOLD),
            categories: section.or("categories", Categories::default()),
            window_tokens: section.or("window_tokens", WINDOW_TOKENS.to_vec()),
        }
    }
}

impl Read for Categories {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["flag", "ignore"]);
        Self { flag: section.or("flag", Vec::new()), ignore: section.or("ignore", Vec::new()) }
    }
}

impl Read for Category {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let text = item.text();
        Self::parse(text).unwrap_or_else(|| item.error(format!("expected S1 to S{}; got `{text}`", Self::LAST)))
    }
}

impl Read for Cache {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["ttl_s", "max_temperature"]);
        Self { ttl_s: section.required("ttl_s"), max_temperature: section.or("max_temperature", MAX_TEMPERATURE) }
    }
}

impl Read for Limits {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["requests_per_minute", "tokens_per_minute"]);
        Self {
            requests_per_minute: section.optional("requests_per_minute"),
            tokens_per_minute: section.optional("tokens_per_minute"),
        }
    }
}

impl Read for Trace {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let section = item.section(&["content", "sampling", "redact", "redact_patterns"]);
        let patterns: BTreeMap<String, Pattern> = section.or("redact_patterns", BTreeMap::new());
        Self {
            content: section.or("content", Content::default()),
            sampling: section.or("sampling", 1.0),
            redact: Rules { kinds: section.or("redact", Vec::new()), patterns: patterns.into_iter().collect() },
        }
    }
}

impl Choice for Content {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("full", Self::Full), ("hash", Self::Hash), ("none", Self::None)];
}

impl Choice for Kind {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("email", Self::Email), ("phone", Self::Phone), ("card", Self::Card), ("secret", Self::Secret)];
}

impl Read for Pattern {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        Self::parse(item.text()).unwrap_or_else(|why| item.error(why))
    }
}
