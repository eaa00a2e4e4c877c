//! Which `Host` a page is given to. A site elsewhere can have its own name lead to this machine (DNS rebinding), and the
//! browser then lets it read what it gets; but the name stays in `Host`.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

/// IP addresses and `localhost` are always right: nobody else can make them lead here.
#[derive(Debug, Clone)]
pub struct Hosts {
    /// Further names; `None`: any.
    names: Option<Arc<[String]>>,
}

impl Hosts {
    /// Without `names`, a listener that others can reach answers to any name, one on loopback to none but its own.
    pub fn new(listener: IpAddr, names: &[String]) -> Self {
        let any = names.is_empty() && !listener.is_loopback();
        Self { names: (!any).then(|| names.iter().map(|name| name.to_ascii_lowercase()).collect()) }
    }

    fn allow(&self, authority: &str) -> bool {
        let Some(names) = &self.names else { return true };
        let host = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        let host = host.map_or(authority, |(host, _)| host).to_ascii_lowercase();
        let host = host.trim_end_matches('.');
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        literal.parse::<IpAddr>().is_ok()
            || host == "localhost"
            || host.ends_with(".localhost")
            || names.iter().any(|name| name == host)
    }
}

/// Refuses requests under a foreign name.
pub async fn check(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let of_uri = request.uri().authority().map(|authority| authority.as_str());
    let of_header = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("\0"));
    if of_uri.into_iter().chain(of_header).all(|authority| hosts.allow(authority)) {
        return next.run(request).await;
    }
    let why = "This address answers to localhost and to IP addresses. To give it another name, set \
               PARAPET_SIDECAR_HOSTS to that name and start the sidecar again.\n";
    (StatusCode::FORBIDDEN, why).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_ours_is_refused() {
        let loopback = Hosts::new(IpAddr::from([127, 0, 0, 1]), &[]);
        for host in ["localhost", "LOCALHOST:9090", "a.localhost:1", "127.0.0.1:9090", "[::1]:9090", "10.1.2.3"] {
            assert!(loopback.allow(host), "{host}");
        }
        for host in ["evil.example", "evil.example:9090", "127.0.0.1.evil.example", "localhost.evil.example", "", "\0"]
        {
            assert!(!loopback.allow(host), "{host}");
        }
        let everywhere = IpAddr::from([0, 0, 0, 0]);
        assert!(Hosts::new(everywhere, &[]).allow("any.example"));
        let named = Hosts::new(everywhere, &["Parapet.example".to_owned()]);
        assert!(named.allow("parapet.example:9090") && named.allow("10.0.0.1") && !named.allow("any.example"));
    }
}
