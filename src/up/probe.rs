//! Asks a server whether it is there. Plain HTTP to an address, so that no proxy setting comes between.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::bail;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Loading a model of embeddings or compiling the module on a busy machine takes seconds, never this long.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(25);
const ONE_TRY: Duration = Duration::from_secs(2);

/// The address under which this machine reaches a listener.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The status that `GET path` is answered with.
pub async fn status(address: SocketAddr, path: &str) -> io::Result<u16> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // "HTTP/1.1 200"
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        let status = std::str::from_utf8(&head).ok().and_then(|head| head.strip_prefix("HTTP/1.1 ")?.parse().ok());
        status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP/1.1 answer"))
    };
    timeout(ONE_TRY, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Waits until `GET path` is answered 200.
pub(super) async fn answers(what: &str, address: SocketAddr, path: &str) -> anyhow::Result<()> {
    until(&format!("{what} (http://{address}{path})"), || async {
        match status(address, path).await {
            Ok(200) => Ok(()),
            Ok(status) => Err(format!("it answered {status}")),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

/// Waits until a connection is accepted.
pub(super) async fn accepts(what: &str, address: SocketAddr) -> anyhow::Result<()> {
    until(&format!("{what} ({address})"), || async {
        match timeout(ONE_TRY, TcpStream::connect(address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no connection in time".to_owned()),
        }
    })
    .await
}

async fn until<F: Future<Output = Result<(), String>>>(what: &str, attempt: impl Fn() -> F) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Err(reason) = attempt().await else { return Ok(()) };
        if Instant::now() >= deadline {
            bail!("{what} is not ready after {} s: {reason}", PATIENCE.as_secs());
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 512]).await;
                let _ = stream.write_all(answer).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn the_status_is_read_and_nonsense_is_an_error() {
        assert_eq!(status(server(b"HTTP/1.1 200 OK\r\n\r\n").await, "/").await.unwrap(), 200);
        assert_eq!(status(server(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await, "/").await.unwrap(), 503);
        assert!(status(server(b"SSH-2.0-OpenSSH_9").await, "/").await.is_err());
        assert!(status(server(b"").await, "/").await.is_err());
    }

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        for (listen, reach) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.7:1", "10.0.0.7:1")] {
            assert_eq!(reachable(listen.parse().unwrap()), reach.parse().unwrap());
        }
    }
}
