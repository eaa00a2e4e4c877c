//! Connections that break when the simulator stops, as those of a killed server do.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub(super) struct Stoppable {
    listener: TcpListener,
    stopped: watch::Receiver<bool>,
}

impl Stoppable {
    pub(super) fn new(listener: TcpListener, stopped: watch::Receiver<bool>) -> Self {
        Self { listener, stopped }
    }
}

impl axum::serve::Listener for Stoppable {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        // A paced token must not wait for the acknowledgement of the one before; without the option it is only late.
        let _ = stream.set_nodelay(true);
        (Connection { stream, stopped: Box::pin(stopped(self.stopped.clone())) }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Ready when the simulator is stopped or its handle is gone.
pub(super) async fn stopped(mut receiver: watch::Receiver<bool>) {
    let _ = receiver.wait_for(|stopped| *stopped).await;
}

pub(super) struct Connection {
    stream: TcpStream,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        // A connection that waits to read (each does, to notice a client that leaves) is woken by the stop; a busy one
        // breaks at its next wait, and the future is not polled once it was ready.
        if read.is_pending() && self.stopped.as_mut().poll(cx).is_ready() {
            self.stopped = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
