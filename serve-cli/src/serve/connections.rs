//! Connections: so many at once, and none for clients that open one and say nothing, or read nothing.
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use std::future::Future;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

/// Connections beyond the most, which are told so. Probes and scrapers are answered there too: a full server is not a
/// dead one, and what restarts dead servers must see the difference. Beyond these, connections are closed unread.
const RESERVE: usize = 64;
/// What a connection beyond the most has for its one request.
const RESERVE_PATIENCE: Duration = Duration::from_secs(5);
/// After the process has run out of file descriptors; others may have closed some by then.
const NO_DESCRIPTORS: Duration = Duration::from_millis(200);

/// How many connections, and how patient they are.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// At once.
    pub most: usize,
    /// How long one may be idle, or take for the head of a request, or read nothing of an answer that fills its buffers.
    pub patience: Duration,
}

/// In the extensions of a request whose connection is one too many.
#[derive(Clone, Copy, Debug)]
pub struct OneTooMany {
    /// As many are allowed.
    pub most: usize,
}

impl Connections {
    /// Serves until `ended`, and then until all answers are written.
    pub async fn serve(self, listener: TcpListener, app: Router, ended: impl Future<Output = ()>) {
        let (places, reserve) = (Arc::new(Semaphore::new(self.most)), Arc::new(Semaphore::new(RESERVE)));
        let graceful = GracefulShutdown::new();
        let mut ended = std::pin::pin!(ended);
        loop {
            let (stream, peer) = tokio::select! {
                accepted = accept(&listener) => accepted,
                () = &mut ended => break,
            };
            let (place, crowded) = match places.clone().try_acquire_owned() {
                Ok(place) => (place, None),
                Err(_) => match reserve.clone().try_acquire_owned() {
                    Ok(place) => (place, Some(OneTooMany { most: self.most })),
                    Err(_) => continue,
                },
            };
            // Tokens are small packets, and each is wanted now.
            let _ = stream.set_nodelay(true);
            let connection = self.connection(stream, peer, app.clone(), crowded);
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                // A client that breaks off is no problem of the server's.
                let _ = connection.await;
                drop(place);
            });
        }
        drop(listener);
        graceful.shutdown().await;
    }

    fn connection(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        app: Router,
        crowded: Option<OneTooMany>,
    ) -> impl GracefulConnection<Error: Send> + Send + 'static {
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            if let Some(crowded) = crowded {
                request.extensions_mut().insert(crowded);
            }
            app.clone().oneshot(request)
        });
        let patience = if crowded.is_some() { self.patience.min(RESERVE_PATIENCE) } else { self.patience };
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(patience).keep_alive(crowded.is_none());
        // Clients that stop reading end here, or enough of them would hold every place.
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(patience));
        builder.serve_connection(TokioIo::new(Box::pin(stream)), service)
    }
}

/// The next connection.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // Of the one connection.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                let line = format!("warning: cannot accept connections: {error}; `ulimit -n` may be too low\n");
                let _ = std::io::stderr().write_all(line.as_bytes());
                tokio::time::sleep(NO_DESCRIPTORS).await;
            }
        }
    }
}
