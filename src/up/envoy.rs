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

/// What Envoy says when it refuses a configuration, from the lines it printed.
pub(super) fn refusal(lines: &[String]) -> Option<String> {
    let start = lines.iter().position(|line| line.contains(" critical main: "))?;
    let first = lines.get(start)?.split(" critical main: ").nth(1)?;
    // A message may go on for lines, which then have no time in front.
    let more = lines.iter().skip(start + 1).take_while(|line| !starts_with_time(line)).take(8);
    Some(std::iter::once(first).chain(more.map(String::as_str)).map(str::trim).collect::<Vec<_>>().join(" "))
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
    fn a_refusal_is_the_critical_line_and_what_belongs_to_it() {
        let lines = [
            "2026-01-01T00:00:00.001 warning main: something",
            "2026-01-01T00:00:00.002 critical main: error initializing config 'x.yaml': no such field",
            "at line 3",
            "2026-01-01T00:00:00.003 critical main: again",
        ]
        .map(str::to_owned);
        assert_eq!(refusal(&lines).unwrap(), "error initializing config 'x.yaml': no such field at line 3");
        assert_eq!(refusal(&lines[..1]), None);
    }
}
