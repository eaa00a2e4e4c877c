//! What `parapet up` and `parapet render` are told, by flag or by environment.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::endpoint::Endpoint;
use super::render::{Rendering, Upstream};
use super::replicas::HealthCheck;

/// As given. An empty value counts as absent: that is how compose files pass variables that are not set.
///
/// Keys of providers are no flags, so that no list of processes shows them: they are read from the environment alone.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// The Envoy configuration to start from [default: envoy/envoy.yaml]
    #[arg(long, env = "PARAPET_CONFIG", value_name = "FILE")]
    pub config: Option<String>,
    /// Where logs, spool, audit, cache and the rendered configuration live [default: .parapet]
    #[arg(long, env = "PARAPET_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<String>,
    /// The filters' module [default: target/parapet.wasm]
    #[arg(long, env = "PARAPET_WASM", value_name = "FILE")]
    pub wasm: Option<String>,
    /// The address that clients connect to [default: 127.0.0.1]
    #[arg(long, env = "PARAPET_BIND", value_name = "ADDRESS")]
    pub bind: Option<String>,
    /// The port that clients connect to; 0 takes a free one [default: 8080]
    #[arg(long, env = "PARAPET_PORT", value_name = "PORT")]
    pub port: Option<String>,
    /// The address of Envoy's admin interface [default: 127.0.0.1]
    #[arg(long, env = "PARAPET_ADMIN_BIND", value_name = "ADDRESS")]
    pub admin_bind: Option<String>,
    /// The port of Envoy's admin interface; 0 takes a free one [default: 9901]
    #[arg(long, env = "PARAPET_ADMIN_PORT", value_name = "PORT")]
    pub admin_port: Option<String>,
    /// The sidecar's port; 0 takes a free one [default: 9090]
    #[arg(long, env = "PARAPET_SIDECAR_PORT", value_name = "PORT")]
    pub sidecar_port: Option<String>,
    /// A sidecar that runs already
    #[arg(long, env = "PARAPET_SIDECAR_URL", value_name = "URL")]
    pub sidecar_url: Option<String>,
    /// vLLM, several replicas separated by commas [default: a simulator]
    #[arg(long, env = "VLLM_URL", value_name = "URL,...")]
    pub vllm_url: Option<String>,
    /// Where vLLM's replicas are asked whether they live; `off` for servers that cannot tell [default: as the
    /// configuration says]
    #[arg(long, env = "VLLM_HEALTH_PATH", value_name = "PATH")]
    pub vllm_health_path: Option<String>,
    /// The model's name at vLLM [default: as the configuration says]
    #[arg(long, env = "VLLM_MODEL", value_name = "NAME")]
    pub vllm_model: Option<String>,
    /// Llama Guard on vLLM, several replicas separated by commas [default: a simulator]
    #[arg(long, env = "LLAMAGUARD_URL", value_name = "URL,...")]
    pub llamaguard_url: Option<String>,
    /// The guard's name there [default: as the configuration says]
    #[arg(long, env = "LLAMAGUARD_MODEL", value_name = "NAME")]
    pub llamaguard_model: Option<String>,
    /// OpenAI, or a service that speaks like it [default: a simulator]
    #[arg(long, env = "OPENAI_BASE_URL", value_name = "URL")]
    pub openai_base_url: Option<String>,
    /// The model's name there [default: as the configuration says]
    #[arg(long, env = "OPENAI_MODEL", value_name = "NAME")]
    pub openai_model: Option<String>,
    /// Certificates to trust for https [default: as the configuration says, else the system's]
    #[arg(long, env = "PARAPET_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<String>,
}

/// Only `parapet up` runs Envoy.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EnvoyOptions {
    /// The Envoy to run [default: an `envoy` of 1.40 or newer on the PATH]
    #[arg(long, env = "ENVOY_BIN", value_name = "FILE")]
    pub envoy_bin: Option<String>,
    /// Envoy's worker threads [default: 2]
    #[arg(long, env = "PARAPET_CONCURRENCY", value_name = "N")]
    pub concurrency: Option<String>,
    /// What Envoy says: trace, debug, info, warn, error, critical or off [default: warn]
    #[arg(long, env = "PARAPET_ENVOY_LOG_LEVEL", value_name = "LEVEL")]
    pub envoy_log_level: Option<String>,
}

/// [`Options`], read once and sound.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub config: PathBuf,
    pub data_dir: PathBuf,
    pub module: PathBuf,
    /// Port 0 means a free one.
    pub listener: SocketAddr,
    pub admin: SocketAddr,
    pub sidecar_port: u16,
    pub sidecar: Option<Endpoint>,
    pub vllm: Upstream,
    pub openai: Upstream,
    pub llamaguard: Upstream,
    pub vllm_health: Option<HealthCheck>,
    pub ca_file: Option<PathBuf>,
}

impl Options {
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let home = home();
        let file = |option: &Option<String>, default: &dyn Fn() -> PathBuf| {
            let path = given(option).map_or_else(default, PathBuf::from);
            std::path::absolute(&path).with_context(|| format!("no absolute path for {}", path.display()))
        };
        let upstream = |variable, urls: &Option<String>, model: &Option<String>| -> anyhow::Result<Upstream> {
            let endpoints = given(urls).map(|urls| Endpoint::parse_list(variable, urls)).transpose()?;
            Ok(Upstream { endpoints: endpoints.unwrap_or_default(), model: given(model).map(str::to_owned) })
        };
        let openai = Upstream {
            endpoints: Vec::from_iter(
                given(&self.openai_base_url).map(|url| Endpoint::parse("OPENAI_BASE_URL", url)).transpose()?,
            ),
            model: given(&self.openai_model).map(str::to_owned),
        };
        Ok(Settings {
            config: file(&self.config, &|| home.join("envoy/envoy.yaml"))?,
            data_dir: file(&self.data_dir, &|| home.join(".parapet"))?,
            module: file(&self.wasm, &|| built_module(&home))?,
            listener: SocketAddr::new(
                address("PARAPET_BIND", &self.bind)?,
                number("PARAPET_PORT", &self.port, 8080, 0..=65535)?,
            ),
            admin: SocketAddr::new(
                address("PARAPET_ADMIN_BIND", &self.admin_bind)?,
                number("PARAPET_ADMIN_PORT", &self.admin_port, 9901, 0..=65535)?,
            ),
            sidecar_port: number("PARAPET_SIDECAR_PORT", &self.sidecar_port, 9090, 0..=65535)?,
            sidecar: given(&self.sidecar_url).map(|url| Endpoint::parse("PARAPET_SIDECAR_URL", url)).transpose()?,
            vllm: upstream("VLLM_URL", &self.vllm_url, &self.vllm_model)?,
            openai,
            llamaguard: upstream("LLAMAGUARD_URL", &self.llamaguard_url, &self.llamaguard_model)?,
            vllm_health: given(&self.vllm_health_path).map(health_check).transpose()?,
            ca_file: given(&self.ca_file).map(std::path::absolute).transpose()?,
        })
    }
}

impl EnvoyOptions {
    pub(super) fn binary(&self) -> Option<PathBuf> {
        given(&self.envoy_bin).map(PathBuf::from)
    }

    pub(super) fn workers(&self) -> anyhow::Result<u16> {
        number("PARAPET_CONCURRENCY", &self.concurrency, 2, 1..=1024)
    }

    pub(super) fn log_level(&self) -> anyhow::Result<&str> {
        const LEVELS: [&str; 7] = ["trace", "debug", "info", "warn", "error", "critical", "off"];
        let level = given(&self.envoy_log_level).unwrap_or("warn");
        if !LEVELS.contains(&level) {
            bail!("PARAPET_ENVOY_LOG_LEVEL is `{level}`; one of {} was expected", LEVELS.join(", "));
        }
        Ok(level)
    }
}

impl Settings {
    /// What to put into the configuration; the sidecar is taken to be on this machine unless told otherwise.
    pub(super) fn rendering(&self) -> Rendering {
        Rendering {
            listener: self.listener,
            admin: self.admin,
            sidecar: Some(self.sidecar.clone().unwrap_or_else(|| Endpoint::local(self.sidecar_port))),
            vllm: self.vllm.clone(),
            openai: self.openai.clone(),
            llamaguard: self.llamaguard.clone(),
            vllm_health: self.vllm_health.clone(),
            ca_file: self.ca_file.clone(),
            module: self.module.clone(),
            access_log: self.data_dir.join("log/access.jsonl"),
        }
    }
}

fn given(option: &Option<String>) -> Option<&str> {
    option.as_deref().map(str::trim).filter(|value| !value.is_empty())
}

fn address(variable: &str, option: &Option<String>) -> anyhow::Result<IpAddr> {
    match given(option) {
        None => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        Some(text) => {
            text.parse().with_context(|| format!("{variable} is `{text}`; an address such as 127.0.0.1 was expected"))
        }
    }
}

fn health_check(text: &str) -> anyhow::Result<HealthCheck> {
    HealthCheck::parse(text)
        .with_context(|| format!("VLLM_HEALTH_PATH is `{text}`; a path such as /health, or `off`, was expected"))
}

fn number(
    variable: &str,
    option: &Option<String>,
    default: u16,
    range: std::ops::RangeInclusive<u32>,
) -> anyhow::Result<u16> {
    let Some(text) = given(option) else { return Ok(default) };
    match text.parse::<u32>() {
        Ok(number) if range.contains(&number) => Ok(u16::try_from(number)?),
        _ => bail!("{variable} is `{text}`; a number from {} to {} was expected", range.start(), range.end()),
    }
}

/// The repository that the running binary was built in, else the working directory.
fn home() -> PathBuf {
    let binary = std::env::current_exe().unwrap_or_default();
    let repository = binary.ancestors().find(|directory| directory.join("envoy/envoy.yaml").is_file());
    repository.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// `scripts/build-wasm` leaves the module above the directory of the native binaries.
fn built_module(home: &Path) -> PathBuf {
    let binary = std::env::current_exe().unwrap_or_default();
    let beside = binary.parent().and_then(Path::parent).map(|target| target.join("parapet.wasm"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| home.join("target/parapet.wasm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(edit: impl FnOnce(&mut Options)) -> anyhow::Result<Settings> {
        let mut options = Options::default();
        edit(&mut options);
        options.settings()
    }

    #[test]
    fn nothing_given_means_loopback_and_the_documented_ports() {
        let settings = options(|_| {}).unwrap();
        assert_eq!(settings.listener.to_string(), "127.0.0.1:8080");
        assert_eq!(settings.admin.to_string(), "127.0.0.1:9901");
        assert_eq!(settings.sidecar_port, 9090);
        assert!(settings.data_dir.is_absolute() && settings.module.is_absolute());
        assert_eq!(settings.rendering().sidecar, Some(Endpoint::local(9090)));
    }

    #[test]
    fn an_empty_variable_counts_as_absent() {
        let settings = options(|options| {
            options.vllm_url = Some(String::new());
            options.port = Some(" ".to_owned());
            options.openai_model = Some(String::new());
        });
        let settings = settings.unwrap();
        assert_eq!((settings.vllm, settings.openai), (Upstream::default(), Upstream::default()));
        assert_eq!(settings.listener.port(), 8080);
    }

    #[test]
    fn what_cannot_be_is_refused_in_one_line_that_names_the_variable() {
        type Edit = fn(&mut Options);
        let table: [(Edit, &str); 7] = [
            (|options| options.vllm_health_path = Some("health".into()), "VLLM_HEALTH_PATH is `health`; a path"),
            (|options| options.port = Some("70000".into()), "PARAPET_PORT is `70000`; a number from 0 to 65535"),
            (|options| options.sidecar_port = Some("x".into()), "PARAPET_SIDECAR_PORT is `x`"),
            (|options| options.admin_port = Some("-1".into()), "PARAPET_ADMIN_PORT is `-1`"),
            (|options| options.bind = Some("localhost".into()), "PARAPET_BIND is `localhost`"),
            (|options| options.vllm_url = Some("http://a,ftp://b".into()), "VLLM_URL: the scheme is `ftp`"),
            (|options| options.openai_base_url = Some("https://k@a".into()), "OPENAI_BASE_URL holds a user name"),
        ];
        for (edit, expected) in table {
            let error = format!("{:#}", options(edit).unwrap_err());
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
        let envoy = |concurrency: &str, level: &str| EnvoyOptions {
            concurrency: Some(concurrency.to_owned()),
            envoy_log_level: Some(level.to_owned()),
            ..EnvoyOptions::default()
        };
        assert!(envoy("0", "").workers().unwrap_err().to_string().contains("PARAPET_CONCURRENCY"));
        assert!(envoy("", "loud").log_level().unwrap_err().to_string().contains("PARAPET_ENVOY_LOG_LEVEL"));
        assert_eq!((envoy("4", "info").workers().unwrap(), envoy("", "").log_level().unwrap()), (4, "warn"));
    }
}
