//! The gRPC server. HTTP/2 without TLS, on the sidecar's own address: who reaches it can write records, as who can
//! write the access log's file can.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse};
use tonic::server::{ClientStreamingService, Grpc};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::arrivals::Entrance;
use super::proto::{HttpAccessLogEntry, StreamAccessLogsMessage, StreamAccessLogsResponse};
use crate::metrics::Metrics;

const PATH: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// The custom tag that holds the line.
const TAG: &str = "parapet";
/// A line of the file has the same bound; a message adds little to one.
const MAX_LINE: usize = 16 << 20;
const MAX_MESSAGE: usize = MAX_LINE + (1 << 20);
/// Each Envoy worker has a connection with one stream. Those beyond it wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
const MAX_STREAMS: u32 = 4;
/// A peer that is silent is asked so often whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long open streams may take to notice that the process ends.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Server {
    pub entrance: Entrance,
    pub metrics: Arc<Metrics>,
}

impl Server {
    /// Takes entries until `stop` is true.
    pub async fn run(self, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connection_stop = stop.clone();
        loop {
            let accepted = async {
                let permit = Arc::clone(&connections).acquire_owned().await.map_err(std::io::Error::other)?;
                listener.accept().await.map(|(stream, _)| (stream, permit))
            };
            tokio::select! {
                accepted = accepted => match accepted {
                    Ok((stream, permit)) => {
                        tokio::spawn(self.clone().connection(stream, permit, connection_stop.clone()));
                    }
                    Err(error) => {
                        tracing::warn!("a connection to the access log service cannot be accepted: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                () = stopped(&mut stop) => return,
            }
        }
    }

    async fn connection(self, stream: TcpStream, _permit: OwnedSemaphorePermit, mut stop: watch::Receiver<bool>) {
        let service = service_fn(move |request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .max_concurrent_streams(MAX_STREAMS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!("a connection to the access log service ended: {error}");
                }
            }
            () = stopped(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                // Envoy keeps its stream open: the time over is the usual end.
                let _ = tokio::time::timeout(GRACE, connection).await;
            }
        }
    }

    async fn answer(self, request: HttpRequest<Incoming>) -> HttpResponse<tonic::body::Body> {
        if request.uri().path() != PATH {
            return Status::unimplemented("only AccessLogService.StreamAccessLogs is served").into_http();
        }
        Grpc::new(ProstCodec::default()).max_decoding_message_size(MAX_MESSAGE).client_streaming(self, request).await
    }

    async fn take(&self, mut messages: Streaming<StreamAccessLogsMessage>) -> Result<(), Status> {
        loop {
            let message = match messages.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(status) => {
                    self.metrics.als_entry("stream_broken");
                    return Err(status);
                }
            };
            for entry in message.http_logs.into_iter().flat_map(|logs| logs.log_entry) {
                match line(entry) {
                    Ok(line) => {
                        self.metrics.als_entry("taken");
                        if !self.entrance.put(line).await {
                            return Err(Status::unavailable("the sidecar ends"));
                        }
                    }
                    Err(why) => self.metrics.als_entry(why),
                }
            }
        }
    }
}

impl ClientStreamingService<StreamAccessLogsMessage> for Server {
    type Response = StreamAccessLogsResponse;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<StreamAccessLogsResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<StreamAccessLogsMessage>>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            server.take(request.into_inner()).await?;
            Ok(Response::new(StreamAccessLogsResponse {}))
        })
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Nobody holds the sender any more, or it says stop: the same here.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The access log's line in the entry, or why there is none.
fn line(entry: HttpAccessLogEntry) -> Result<Vec<u8>, &'static str> {
    let mut tags = entry.common_properties.map(|common| common.custom_tags).unwrap_or_default();
    let mut line = tags.remove(TAG).ok_or("without_line")?.into_bytes();
    line.truncate(line.trim_ascii_end().len());
    if line.len() > MAX_LINE {
        return Err("too_long");
    }
    // The spool's lines end where a newline is.
    if line.is_empty() || line.contains(&b'\n') {
        return Err("not_a_line");
    }
    Ok(line)
}

#[cfg(test)]
mod tests;
