//! A server named by a URL in the environment.

use std::net::IpAddr;

use reqwest::Url;

/// The server behind `VLLM_URL` and its like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// A DNS name or an address; an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// What stands before `/chat/completions`: starts with a slash, ends without one.
    pub base_path: String,
}

/// Names the variable and never quotes its value: a malformed URL may still hold a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EndpointError {
    #[error("{variable} is no URL ({reason}): write it like http://127.0.0.1:8000 or https://api.example.com/v1")]
    NoUrl { variable: &'static str, reason: String },
    #[error(
        "{variable}: the scheme is `{scheme}`, but only http and https can be spoken: write it like http://HOST:PORT"
    )]
    Scheme { variable: &'static str, scheme: String },
    #[error("{variable} holds a user name or password: take it out, keys go into their own variables")]
    UserInfo { variable: &'static str },
    #[error("{variable} has a query or a fragment: give the scheme, host, port and base path only")]
    Query { variable: &'static str },
    #[error("{variable}: port 0 cannot be connected to")]
    Port { variable: &'static str },
    #[error("{variable}: replicas of one cluster need the same scheme and base path, and these differ")]
    Mixed { variable: &'static str },
    #[error("{variable} names {count} servers; at most {max} are taken")]
    TooMany { variable: &'static str, count: usize, max: usize },
}

/// More replicas than anyone writes into one variable.
const MAX_REPLICAS: usize = 256;

impl Endpoint {
    /// Reads one URL. An empty path means `/v1`, where OpenAI-compatible servers have their API.
    pub(super) fn parse(variable: &'static str, text: &str) -> Result<Self, EndpointError> {
        let url =
            Url::parse(text.trim()).map_err(|error| EndpointError::NoUrl { variable, reason: error.to_string() })?;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            scheme => return Err(EndpointError::Scheme { variable, scheme: scheme.to_owned() }),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EndpointError::UserInfo { variable });
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(EndpointError::Query { variable });
        }
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port_or_known_default().unwrap_or_default();
        if port == 0 {
            return Err(EndpointError::Port { variable });
        }
        let base_path = match url.path().trim_end_matches('/') {
            "" => "/v1".to_owned(),
            path => path.to_owned(),
        };
        Ok(Self { host, port, tls, base_path })
    }

    /// Reads comma-separated URLs: the replicas of one cluster, which differ in host and port only.
    pub(super) fn parse_list(variable: &'static str, text: &str) -> Result<Vec<Self>, EndpointError> {
        let urls: Vec<&str> = text.split(',').map(str::trim).filter(|url| !url.is_empty()).collect();
        if urls.len() > MAX_REPLICAS {
            return Err(EndpointError::TooMany { variable, count: urls.len(), max: MAX_REPLICAS });
        }
        let endpoints = urls.into_iter().map(|url| Self::parse(variable, url)).collect::<Result<Vec<_>, _>>()?;
        let (Some(first), rest) = (endpoints.first(), endpoints.iter().skip(1)) else {
            return Err(EndpointError::NoUrl { variable, reason: "it is empty".to_owned() });
        };
        if rest.into_iter().any(|other| (other.tls, &other.base_path) != (first.tls, &first.base_path)) {
            return Err(EndpointError::Mixed { variable });
        }
        Ok(endpoints)
    }

    /// A plain HTTP server on this machine.
    pub(super) fn local(port: u16) -> Self {
        Self { host: "127.0.0.1".to_owned(), port, tls: false, base_path: "/v1".to_owned() }
    }

    /// The `Host` header that the server expects: without its scheme's own port.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// Its scheme, host and port.
    pub(super) fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }

    /// Whether the host is an address: such a server has no name to send in the TLS handshake.
    pub(super) fn is_address(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_becomes_host_port_tls_base_path_and_authority() {
        let table = [
            ("http://127.0.0.1:8000", "127.0.0.1", 8000, false, "/v1", "127.0.0.1:8000"),
            ("http://127.0.0.1:8000/", "127.0.0.1", 8000, false, "/v1", "127.0.0.1:8000"),
            ("http://vllm", "vllm", 80, false, "/v1", "vllm"),
            ("http://vllm:8000/v1/", "vllm", 8000, false, "/v1", "vllm:8000"),
            ("https://api.openai.com/v1", "api.openai.com", 443, true, "/v1", "api.openai.com"),
            ("https://API.OpenAI.com", "api.openai.com", 443, true, "/v1", "api.openai.com"),
            ("https://gw.example:8443/openai/v1", "gw.example", 8443, true, "/openai/v1", "gw.example:8443"),
            ("https://example.com:80/v1", "example.com", 80, true, "/v1", "example.com:80"),
            ("http://[::1]:8000/v1", "::1", 8000, false, "/v1", "[::1]:8000"),
            (" http://a:1/api/v3 ", "a", 1, false, "/api/v3", "a:1"),
        ];
        for (url, host, port, tls, base_path, authority) in table {
            let endpoint = Endpoint::parse("VLLM_URL", url).unwrap_or_else(|error| panic!("{url}: {error}"));
            let expected = Endpoint { host: host.into(), port, tls, base_path: base_path.into() };
            assert_eq!(endpoint, expected, "{url}");
            assert_eq!(endpoint.authority(), authority, "{url}");
        }
    }

    #[test]
    fn a_bad_url_is_refused_with_its_variable_and_without_its_value() {
        let table = [
            ("", "VLLM_URL is no URL"),
            ("127.0.0.1:8000", "VLLM_URL is no URL"),
            ("localhost:8000", "the scheme is `localhost`"),
            ("ftp://a/v1", "the scheme is `ftp`"),
            ("http://", "VLLM_URL is no URL"),
            ("http://a:99999", "VLLM_URL is no URL"),
            ("http://a:0", "port 0"),
            ("https://user:s3cret@a/v1", "user name or password"),
            ("https://s3cret@a/v1", "user name or password"),
            ("https://a/v1?api-version=1", "query"),
            ("https://a/v1#x", "fragment"),
            ("https://user:s3cret@a b/", "VLLM_URL is no URL"),
        ];
        for (url, expected) in table {
            let error = Endpoint::parse("VLLM_URL", url).map(|endpoint| panic!("{url}: {endpoint:?}")).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("VLLM_URL") && text.contains(expected), "{url}: {text}");
            assert!(!text.contains("s3cret") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn replicas_share_scheme_and_path() {
        let two = Endpoint::parse_list("VLLM_URL", "http://a:8000, http://b:8001,").unwrap();
        assert_eq!(two.iter().map(Endpoint::authority).collect::<Vec<_>>(), ["a:8000", "b:8001"]);
        for mixed in ["http://a,https://b", "http://a/v1,http://b/v2"] {
            assert_eq!(
                Endpoint::parse_list("VLLM_URL", mixed),
                Err(EndpointError::Mixed { variable: "VLLM_URL" }),
                "{mixed}"
            );
        }
        assert!(Endpoint::parse_list("VLLM_URL", " , ").is_err());
    }
}
