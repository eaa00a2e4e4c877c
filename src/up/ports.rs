//! Ports: found free before anything starts, so that a collision is one clear line instead of a child's death.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, bail};

/// Checks that an address can be listened on and gives it back, its port 0 replaced by a free one.
pub(super) fn claim(variable: &str, address: SocketAddr) -> anyhow::Result<SocketAddr> {
    let bound = TcpListener::bind(address).and_then(|listener| listener.local_addr());
    bound.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {} on {} is in use: stop what listens there or set {variable} to another port",
            address.port(),
            address.ip()
        ),
        ErrorKind::PermissionDenied => anyhow::anyhow!(
            "port {} on {} is not allowed to this user: set {variable} to one from 1024 on",
            address.port(),
            address.ip()
        ),
        _ => anyhow::anyhow!("cannot listen on {address} ({variable}): {error}"),
    })
}

/// Refuses one port for two servers.
pub(super) fn distinct(claims: &[(&str, SocketAddr)]) -> anyhow::Result<()> {
    for (index, (variable, address)) in claims.iter().enumerate() {
        if let Some((other, _)) = claims.iter().take(index).find(|(_, earlier)| earlier.port() == address.port()) {
            bail!("{other} and {variable} are both {}: give each its own port", address.port());
        }
    }
    Ok(())
}

/// Free loopback ports, all different. Another process may take one before it is used; the child that then cannot
/// listen says so.
pub(super) fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    let listeners = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<Vec<_>, _>>();
    let listeners = listeners.context("no free port on 127.0.0.1")?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_one_line_with_the_variable_to_change() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let error = claim("PARAPET_PORT", address).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "port {} on 127.0.0.1 is in use: stop what listens there or set PARAPET_PORT to another port",
                address.port()
            )
        );
        drop(listener);
        assert_eq!(claim("PARAPET_PORT", address).unwrap(), address);
    }

    #[test]
    fn port_0_becomes_a_free_one() {
        assert_ne!(claim("PARAPET_PORT", "127.0.0.1:0".parse().unwrap()).unwrap().port(), 0);
        let ports = free(8).unwrap();
        let distinct: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), 8);
    }

    #[test]
    fn one_port_is_not_given_twice() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let error = distinct(&[("A", address(1)), ("B", address(2)), ("C", address(1))]).unwrap_err().to_string();
        assert_eq!(error, "A and C are both 1: give each its own port");
        assert!(distinct(&[("A", address(1)), ("B", address(2))]).is_ok());
    }
}
