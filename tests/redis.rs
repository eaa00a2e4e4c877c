//! Gateways that share nothing but a Redis share their cached answers, and lose nothing with it.
//!
//! `scripts/test e2e` sees to it that there is a `redis-server`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

mod support;

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::{Request, Stack, ask, eventually, free_port, with};

/// A real one, without a disk.
struct Server {
    process: Child,
    port: u16,
}

const PASSWORD: &str = "redis-own-password";

impl Server {
    async fn start(port: u16) -> Self {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--requirepass", PASSWORD]);
        command.args(["--save", "", "--appendonly", "no"]).stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.spawn().expect("redis-server cannot be started: install Debian's package redis-server");
        let server = Self { process, port };
        eventually("Redis", async || server.query::<String>(&redis::cmd("PING")).await).await;
        server
    }

    fn url(&self) -> String {
        format!("redis://:{PASSWORD}@127.0.0.1:{}", self.port)
    }

    async fn query<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> Option<T> {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        command.query_async(&mut connection).await.ok()
    }

    async fn keys(&self) -> Vec<String> {
        self.query(redis::cmd("KEYS").arg("*")).await.unwrap()
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn stack(url: &str) -> Stack {
    // A gateway that waits as long as a busy machine needs.
    Stack::builder().env("REDIS_URL", url).edit("timeout_ms: 10}", "timeout_ms: 5000}").start().await
}

/// Asks the sidecar as the gateway does; a lookup that Redis does not answer within its few milliseconds is a miss.
async fn look_up(stack: &Stack, key: &str) -> u16 {
    let name = key.strip_prefix("parapet:cache:").unwrap();
    Request::new(stack.sidecar, "GET", &format!("/internal/cache/{name}")).send().await.status
}

/// Whether the answer came from the cache, and its text.
async fn asked(stack: &Stack, question: &Value) -> (bool, String) {
    let response = stack.alice(question).await;
    assert_eq!(response.status, 200);
    let hit = response.header("cache-status").unwrap_or_default().contains("hit");
    let text = response.into_json().await["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    (hit, text)
}

async fn metrics(stack: &Stack) -> String {
    Request::new(stack.sidecar, "GET", "/metrics").send().await.text().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_found_by_another_gateway_and_dies_in_time() {
    let server = Server::start(free_port()).await;
    let first = stack(&server.url()).await;
    let question = ask("say: shared");
    assert_eq!(asked(&first, &question).await, (false, "shared".to_owned()));
    let keys = eventually("the entry", async || Some(server.keys().await).filter(|keys| !keys.is_empty())).await;
    assert_eq!(keys.len(), 1);
    assert!(keys[0].starts_with("parapet:cache:"), "{keys:?}");
    let left: i64 = server.query(redis::cmd("TTL").arg(&keys[0])).await.unwrap();
    assert!((3500..=3600).contains(&left), "{left}");

    let second = stack(&server.url()).await;
    eventually("a lookup", async || (look_up(&second, &keys[0]).await == 200).then_some(())).await;
    assert_eq!(asked(&second, &question).await, (true, "shared".to_owned()));
    assert!(second.vllm_requests().is_empty());
    let counted = metrics(&second).await;
    assert!(counted.contains(r#"parapet_cache_redis_total{operation="get",outcome="hit"} 1"#), "{counted}");
    // What is not ours under one of our keys is a miss.
    let other = ask("say: forged");
    assert_eq!(asked(&first, &other).await, (false, "forged".to_owned()));
    let forged = eventually("the entry", async || server.keys().await.into_iter().find(|key| *key != keys[0])).await;
    for (times, value) in ["{\"answers\":7}".to_owned(), "x".repeat(3 << 20)].into_iter().enumerate() {
        let _: String = server.query(redis::cmd("SET").arg(&forged).arg(&value)).await.unwrap();
        eventually("the entry is found to be none", async || {
            assert_eq!(look_up(&second, &forged).await, 404);
            let line = format!(r#"parapet_cache_redis_total{{operation="get",outcome="invalid"}} {}"#, times + 1);
            metrics(&second).await.contains(&line).then_some(())
        })
        .await;
    }
    assert_eq!(asked(&second, &other).await, (false, "forged".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_requests_are_served_and_memory_answers_as_before() {
    let mut server = Server::start(free_port()).await;
    let stack = stack(&server.url()).await;
    let before = ask("say: before");
    assert!(!asked(&stack, &before).await.0);
    eventually("the entry", async || Some(server.keys().await).filter(|keys| !keys.is_empty())).await;
    server.kill();
    assert!(asked(&stack, &before).await.0, "what is here needs no Redis");
    for number in 0..5 {
        let (hit, text) = asked(&stack, &with(ask(&format!("say: {number}")), json!({"seed": number}))).await;
        assert_eq!((hit, text), (false, number.to_string()));
    }
    let counted = metrics(&stack).await;
    let failed = [r#"operation="get",outcome="failed""#, r#"operation="get",outcome="timeout""#];
    assert!(failed.iter().any(|outcome| counted.contains(outcome)), "{counted}");
    assert!(!counted.contains(PASSWORD));

    let server = Server::start(server.port).await;
    let mut number = 100;
    eventually("an entry in the new Redis", async || {
        number += 1;
        asked(&stack, &ask(&format!("say: {number}"))).await;
        Some(server.keys().await).filter(|keys| !keys.is_empty())
    })
    .await;
}
