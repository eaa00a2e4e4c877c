//! What types cannot say: references that must resolve, values that must make sense.

use super::{Config, ConfigError, Policy};
use crate::deadline::MAX_MS;

fn error<T>(path: impl Into<String>, message: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError { path: path.into(), message: message.into() })
}

pub(super) fn config(config: &Config) -> Result<(), ConfigError> {
    if config.max_request_bytes == 0 {
        return error("max_request_bytes", "expected at least 1");
    }
    for (key, value) in [
        ("stream_ms", config.first_token.stream_ms),
        ("json_ms", config.first_token.json_ms),
        ("deadline_ms", config.first_token.deadline_ms),
        ("floor_ms", config.first_token.floor_ms),
    ] {
        if value == 0 {
            return error(format!("first_token.{key}"), "expected at least 1");
        }
    }
    let limits = &config.first_token;
    if limits.floor_ms > limits.stream_ms || limits.ceiling_ms < limits.stream_ms {
        return error("first_token", "expected `floor_ms`, `stream_ms` and `ceiling_ms` to grow in this order");
    }
    providers(config)?;
    models(config)?;
    if let Some(guard) = &config.guard {
        base_path("guard.base_path", &guard.base_path)?;
    }
    for (i, key) in config.keys.iter().enumerate() {
        if !config.policies.contains_key(&key.policy) {
            let known: Vec<&str> = config.policies.keys().map(String::as_str).collect();
            return error(
                format!("keys[{i}].policy"),
                format!("no policy named `{}`; expected one of: {}", key.policy, known.join(", ")),
            );
        }
        if key.tenant.is_empty() || key.user.is_empty() {
            return error(format!("keys[{i}]"), "expected a tenant and a user");
        }
        let mut same = config.key_index.candidates(&config.keys, &key.sha256);
        if same.find(|(_, other)| other.sha256 == key.sha256).is_some_and(|(first, _)| first as usize != i) {
            return error(format!("keys[{i}].sha256"), "the same key stands twice");
        }
    }
    config.policies.iter().try_for_each(|(name, value)| policy(config, name, value))
}

fn providers(config: &Config) -> Result<(), ConfigError> {
    if config.providers.is_empty() {
        return error("providers", "expected at least one provider");
    }
    for (i, provider) in config.providers.iter().enumerate() {
        let at = format!("providers[{i}]");
        base_path(&format!("{at}.base_path"), &provider.base_path)?;
        if config.providers.iter().take(i).any(|other| other.name == provider.name) {
            return error(format!("{at}.name"), format!("a provider named `{}` stands twice", provider.name));
        }
        let price = provider.price;
        for (name, value) in [("input", price.input), ("cached", price.cached.unwrap_or(0.0)), ("output", price.output)]
        {
            if !(0.0..=1_000_000.0).contains(&value) {
                return error(format!("{at}.price.{name}"), "expected US dollars per million tokens, 0 or more");
            }
        }
    }
    Ok(())
}

fn models(config: &Config) -> Result<(), ConfigError> {
    if config.models.is_empty() {
        return error("models", "expected at least one model");
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, model) in config.models.iter().enumerate() {
        if model.chain.is_empty() {
            return error(format!("models[{i}].chain"), "expected at least one provider");
        }
        for (j, link) in model.chain.iter().enumerate() {
            if config.provider(&link.provider).is_none() {
                return error(
                    format!("models[{i}].chain[{j}].provider"),
                    format!("no provider named `{}` under `providers`", link.provider),
                );
            }
        }
        if model.spill_cluster.is_some() && model.chain.len() < 2 {
            return error(format!("models[{i}].spill_cluster"), "nobody is left in `chain` to spill to");
        }
        for name in model.aliases.iter().chain(core::iter::once(&model.name)) {
            if names.contains(&name.as_str()) {
                return error(format!("models[{i}]"), format!("the name `{name}` stands twice"));
            }
            names.push(name);
        }
    }
    Ok(())
}

fn base_path(path: &str, value: &str) -> Result<(), ConfigError> {
    if !value.starts_with('/') || value.ends_with('/') {
        return error(path, format!("expected a path as `/v1`, with no slash at its end; got `{value}`"));
    }
    Ok(())
}

fn policy(config: &Config, name: &str, policy: &Policy) -> Result<(), ConfigError> {
    let at = format!("policies.{name}");
    for (i, model) in policy.models.iter().flatten().enumerate() {
        if !config.models.iter().any(|known| known.name == *model) {
            return error(format!("{at}.models[{i}]"), format!("no model named `{model}` under `models`"));
        }
    }
    let input = policy.input_guard.as_ref().map(|guard| ("input_guard", guard.threshold, guard.timeout_ms));
    let output = policy.output_guard.as_ref().map(|guard| ("output_guard", guard.threshold, guard.timeout_ms));
    for (side, threshold, timeout_ms) in input.into_iter().chain(output) {
        if config.guard.is_none() {
            return error(format!("{at}.{side}"), "there is no `guard` to ask");
        }
        if !(threshold > 0.0 && threshold < 1.0) {
            return error(format!("{at}.{side}.threshold"), "expected a probability between 0 and 1");
        }
        if timeout_ms == 0 {
            return error(
                format!("{at}.{side}.timeout_ms"),
                "expected at least 1: a guard without a limit hangs requests",
            );
        }
    }
    if let Some(guard) = &policy.output_guard
        && (guard.window_tokens.is_empty() || guard.window_tokens.contains(&0))
    {
        return error(format!("{at}.output_guard.window_tokens"), "expected sizes of 1 or more");
    }
    if !(0.0..=1.0).contains(&policy.trace.sampling) {
        return error(format!("{at}.trace.sampling"), "expected a share between 0 and 1");
    }
    for (name, _) in &policy.trace.redact.patterns {
        if name.is_empty() || name.len() > 32 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            return error(
                format!("{at}.trace.redact_patterns.{name}"),
                "expected a name of 1 to 32 letters, digits and `_`: it stands in place of what matches",
            );
        }
    }
    for (key, value) in [("hedge_after_ms", policy.hedge_after_ms), ("deadline_ms", policy.deadline_ms)] {
        if value.is_some_and(|ms| !(1..=MAX_MS).contains(&ms)) {
            return error(
                format!("{at}.{key}"),
                format!("expected milliseconds, 1 to {MAX_MS}; leave it out for none"),
            );
        }
    }
    if let Some(spill) = &policy.spill {
        let at = format!("{at}.spill");
        if config.sidecar.is_none() {
            return error(at, "there is no `sidecar` that knows how busy a provider is");
        }
        if spill.waiting == Some(0) || (spill.waiting.is_none() && spill.kv_cache.is_none()) {
            return error(at, "expected `waiting` of 1 or more, `kv_cache`, or both");
        }
        if spill.kv_cache.is_some_and(|most| !(most > 0.0 && most <= 1.0)) {
            return error(format!("{at}.kv_cache"), "expected a part of the KV cache between 0 and 1");
        }
    }
    if !(1..=100).contains(&policy.hedge_budget_percent) {
        return error(format!("{at}.hedge_budget_percent"), "expected 1 to 100; no `hedge_after_ms` is no hedging");
    }
    for (key, limit) in [
        ("requests_per_minute", policy.limits.requests_per_minute),
        ("tokens_per_minute", policy.limits.tokens_per_minute),
    ] {
        if limit.is_some_and(|limit| limit == 0 || limit > 1_000_000_000_000) {
            return error(format!("{at}.limits.{key}"), "expected 1 to 1,000,000,000,000; leave it out for no limit");
        }
    }
    Ok(())
}
