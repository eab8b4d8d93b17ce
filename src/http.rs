//! An HTTP listener that no client can exhaust.

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::debug;

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A client that comes beyond this waits until one goes.
    pub(crate) connections: usize,
    /// A request's head may take so long to come.
    pub(crate) idle: Duration,
    /// A connection may last so long, and then has one request only; without it, as long as requests come.
    pub(crate) connection: Option<Duration>,
}

/// Heads of requests have a few lines.
const BUFFER_BYTES_MAX: usize = 8 << 10;

/// Serves `router` until it is dropped.
pub(crate) async fn serve(listener: TcpListener, router: Router, limits: Limits) {
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        // Never closed, so there always will be a place.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of file descriptors, perhaps; that must not become a busy loop.
                debug!("no connection over HTTP: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Answers are short, and clients wait for them.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.idle)
                .keep_alive(limits.connection.is_none())
                .max_buf_size(BUFFER_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            let lifetime = limits.connection.unwrap_or(Duration::MAX);
            if let Ok(Err(e)) = tokio::time::timeout(lifetime, connection).await {
                debug!("a connection over HTTP: {e}");
            }
            drop(place);
        });
    }
}
