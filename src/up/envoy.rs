//! The Envoy binary: found, run, understood when it refuses.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The oldest version that the shipped configuration runs on.
const OLDEST: (u32, u32) = (1, 40);
const HOW_TO_GET: &str = "run scripts/up, which gets one, or set ENVOY_BIN to an Envoy 1.40 or newer";

/// The binary to run: what the operator names, else an `envoy` on the PATH that is new enough.
pub(super) async fn find(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        if !path.is_file() {
            bail!("ENVOY_BIN names {}, which is no file: {HOW_TO_GET}", path.display());
        }
        return std::path::absolute(&path).context("ENVOY_BIN has no absolute path");
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let candidate =
        std::env::split_paths(&directories).map(|directory| directory.join("envoy")).find(|path| path.is_file());
    let Some(path) = candidate else { bail!("there is no Envoy on the PATH: {HOW_TO_GET}") };
    let output = tokio::process::Command::new(&path).arg("--version").kill_on_drop(true).output();
    let output = output.await.with_context(|| format!("cannot run {}: {HOW_TO_GET}", path.display()))?;
    match version(&String::from_utf8_lossy(&output.stdout)) {
        Some(found) if found >= OLDEST => Ok(path),
        Some((major, minor)) => bail!("{} is version {major}.{minor}: {HOW_TO_GET}", path.display()),
        None => bail!("{} does not tell its version: {HOW_TO_GET}", path.display()),
    }
}

/// Reads `…  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL`.
fn version(text: &str) -> Option<(u32, u32)> {
    let number = text.split("version: ").nth(1)?.split('/').nth(1)?;
    let mut parts = number.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn arguments(config: &Path, workers: u16, log_level: &str) -> Vec<OsString> {
    let workers = workers.to_string();
    let flags = [
        "--config-path",
        &config.to_string_lossy(),
        // Two Envoys with hot restart and the same base id end each other.
        "--disable-hot-restart",
        // How much of the ledger a killed Envoy may lose, in milliseconds.
        "--file-flush-interval-msec",
        "100",
        "--concurrency",
        &workers,
        "--log-level",
        log_level,
        "--log-format",
        "%Y-%m-%dT%T.%e %l %n: %v",
    ];
    flags.map(OsString::from).to_vec()
}

/// What Envoy says when it refuses a configuration, in one line, from the lines it printed.
pub(super) fn refusal(lines: &[String]) -> Option<String> {
    let start = lines.iter().position(|line| line.contains(" critical main: "))?;
    let first = lines.get(start)?.split(" critical main: ").nth(1)?;
    // A message may go on for lines, which then have no time in front.
    let more = lines.iter().skip(start + 1).take_while(|line| !starts_with_time(line)).take(8);
    let message = std::iter::once(first).chain(more.map(String::as_str)).collect::<Vec<_>>().join(" ");
    // "error `REASON` initializing config 'FILE' REASON"
    let reason = message.split_once("error `").and_then(|(_, rest)| rest.split_once("` initializing config"));
    let reason = reason.map_or(message.as_str(), |(reason, _)| reason);
    // Envoy marks some messages as made for people with words that are not.
    let words = reason.split_whitespace().filter(|word| !word.starts_with("goo.gle/"));
    let mut text = words.collect::<Vec<_>>().join(" ");
    if let Some(cause) = wasm_cause(lines) {
        text = format!("{text}: {cause}");
    }
    Some(text)
}

/// Why a filter did not load: its own words, else the virtual machine's. Envoy's verdict does not repeat them.
fn wasm_cause(lines: &[String]) -> Option<&str> {
    let bad = |line: &&String| line.contains(" error wasm: ") || line.contains(" critical wasm: ");
    let said = |line: &&String| bad(line) && line.contains("wasm log");
    let line = lines.iter().find(said).or_else(|| lines.iter().find(bad))?;
    line.split(" wasm: ").nth(1).map(str::trim)
}

fn starts_with_time(line: &str) -> bool {
    line.as_bytes().get(..5).is_some_and(|year| year.ends_with(b"-") && year.iter().take(4).all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_build_string() {
        assert_eq!(version("\nenvoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL\n"), Some((1, 40)));
        assert_eq!(version("envoy  version: 0/2.3.1-dev/Modified/DEBUG/BoringSSL"), Some((2, 3)));
        assert_eq!(version("something else"), None);
    }

    #[tokio::test]
    async fn a_binary_that_is_not_there_is_one_line() {
        let error = find(Some("/nowhere/envoy".into())).await.unwrap_err().to_string();
        assert!(error.starts_with("ENVOY_BIN names /nowhere/envoy") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_refusal_is_one_line_that_tells_the_reason_once() {
        let refused = |text: &str| refusal(&text.lines().map(str::to_owned).collect::<Vec<_>>());
        let field = "\
2026-01-01T00:00:00.001 warning main: something
2026-01-01T00:00:00.002 critical main: error `Invalid duration: Expected positive duration: goo.gle/debugonly
seconds: -1
` initializing config 'goo.gle/debugonly
  /data/run/envoy.yaml'
Invalid duration: Expected positive duration: goo.gle/debugonly
seconds: -1";
        assert_eq!(refused(field).unwrap(), "Invalid duration: Expected positive duration: seconds: -1");
        let filter = "\
2026-01-01T00:00:00.001 error wasm: Wasm VM failed
2026-01-01T00:00:00.001 error wasm: wasm log gateway: guard.mode: expected `off`
2026-01-01T00:00:00.002 critical main: error `Unable to create Wasm plugin gateway` initializing config '/data/run/envoy.yaml'
Unable to create Wasm plugin gateway";
        let expected = "Unable to create Wasm plugin gateway: wasm log gateway: guard.mode: expected `off`";
        assert_eq!(refused(filter).unwrap(), expected);
        assert_eq!(refused("2026-01-01T00:00:00.002 critical main: cannot bind").unwrap(), "cannot bind");
        assert_eq!(refused("2026-01-01T00:00:00.001 warning main: something"), None);
    }
}
