//! vLLM's gauges in Prometheus' text form.

use parapet_engine::admission::Load;

const WAITING: &str = "vllm:num_requests_waiting";
/// The newer name, and that of servers before 0.10.
const KV_CACHE: [&str; 2] = ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"];

/// What a replica's engines say together; `None` where there is neither gauge. One that is absent alone says nothing
/// against the server.
pub(super) fn load(text: &str) -> Option<Load> {
    let (mut waiting, mut kv_cache) = (None, None);
    for (name, value) in text.lines().filter_map(sample) {
        if name == WAITING {
            // Each engine of a data-parallel server has a queue of its own.
            waiting = Some(waiting.unwrap_or(0.0) + value);
        } else if KV_CACHE.contains(&name) {
            kv_cache = Some(value.max(kv_cache.unwrap_or(0.0)));
        }
    }
    if waiting.is_none() && kv_cache.is_none() {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, bounded by the cast")]
    let waiting = waiting.unwrap_or(0.0) as u64;
    Some(Load { waiting, kv_cache: kv_cache.unwrap_or(0.0) })
}

/// `NAME{LABELS} VALUE [TIMESTAMP]`; a value that no load can have is none.
fn sample(line: &str) -> Option<(&str, f64)> {
    let line = line.trim();
    let name = line.split(['{', ' ', '\t']).next().filter(|name| name.starts_with("vllm:"))?;
    let rest = line.get(name.len()..)?;
    // A label's value may hold anything but an unescaped quote; a model's name holds no brace.
    let value = if rest.starts_with('{') { rest.rsplit_once('}')?.1 } else { rest };
    let value: f64 = value.split_whitespace().next()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_add_up_and_the_fullest_cache_counts() {
        for (text, expected) in [
            (
                "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\",model_name=\"a/b\"} 3.0\n\
                 vllm:num_requests_waiting{engine=\"1\",model_name=\"a/b\"} 4.0\n\
                 vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 99.0\n\
                 vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.5 1795509895000\n",
                Some((7, 0.5)),
            ),
            ("vllm:num_requests_waiting 2\nvllm:gpu_cache_usage_perc 0.75\n", Some((2, 0.75))),
            ("vllm:gpu_cache_usage_perc{model_name=\"x\"} 1.0\n", Some((0, 1.0))),
            ("vllm:num_requests_waiting{engine=\"0\"} 1e3\n", Some((1000, 0.0))),
            ("vllm:num_requests_waiting NaN\n", None),
            ("vllm:num_requests_waiting -1\n", None),
            ("vllm:num_requests_waiting\nvllm:num_requests_waiting{\n", None),
            ("other:num_requests_waiting 9\n", None),
            ("<html>", None),
            ("", None),
        ] {
            let expected = expected.map(|(waiting, kv_cache)| Load { waiting, kv_cache });
            assert_eq!(load(text), expected, "{text}");
        }
    }
}
