//! Health and metrics of a role over HTTP: `GET /healthz` and `GET /metrics`.
//!
//! What is served is a [`Snapshot`]: states, counters, sizes; at the coordinator also losses and metrics. Whoever may
//! reach the address may read it, so it belongs on loopback or on a network for operators.

use crate::http::{self, Limits};
use crate::service::Requests;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use spnn_protocol::{Activity, Monitor, Role, Snapshot, usage};
use std::fmt::{Display, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// What is watched.
#[derive(Clone)]
pub struct Watched {
    /// Whose process this is.
    pub role: Role,
    /// What the role writes to.
    pub monitor: Monitor,
    /// When its certificate expires, in seconds since 1970; asked anew every time, as certificates are renewed.
    pub certificate_expires: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Of whom predictions are asked: the requests for them.
    pub requests: Option<Requests>,
}

/// Whoever sends nothing, or reads nothing, is let go.
const LIMITS: Limits =
    Limits { connections: 16, idle: Duration::from_secs(5), connection: Some(Duration::from_secs(5)) };

/// Serves health and metrics until it is dropped.
pub async fn serve(listener: TcpListener, watched: Watched) {
    http::serve(listener, router(watched), LIMITS).await;
}

/// `GET /healthz` and `GET /metrics`.
pub(crate) fn router(watched: Watched) -> axum::Router {
    axum::Router::new().route("/healthz", get(healthz)).route("/metrics", get(metrics)).with_state(watched)
}

async fn healthz(State(watched): State<Watched>) -> impl IntoResponse {
    let Snapshot { activity, reason, incarnation, epoch, batch, silent, .. } = watched.monitor.snapshot();
    let status = if activity.is_healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let reason = reason.or_else(|| (activity == Activity::Joining).then(|| "waiting for all roles to come".into()));
    let body = serde_json::json!({
        "role": watched.role.to_string(),
        "state": activity.name(),
        "reason": reason,
        "incarnation": incarnation,
        "epoch": epoch,
        "batch": batch,
        "last_message_seconds": silent.map(|s| s.as_secs_f64()),
    });
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string() + "\n")
}

async fn metrics(State(watched): State<Watched>) -> impl IntoResponse {
    let text = exposition(&watched, &watched.monitor.snapshot());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// The text format of Prometheus, version 0.0.4. Names of roles, kinds and states need no quoting.
fn exposition(watched: &Watched, now: &Snapshot) -> String {
    let mut text = Exposition(String::new());
    let one = |value: u64| [(String::new(), value)];
    let label = format!("{{role=\"{}\",version=\"{}\"}}", watched.role, env!("CARGO_PKG_VERSION"));
    text.family("spnn_info", "gauge", "What runs here.", [(label, 1)]);
    let state = |a: Activity| (format!("{{state=\"{}\"}}", a.name()), u8::from(a == now.activity));
    text.family("spnn_state", "gauge", "1 for what the role is doing.", Activity::ALL.map(state));
    text.family("spnn_incarnation", "gauge", "Number of this start of the session.", one(now.incarnation));
    text.family("spnn_epoch", "gauge", "Epoch, from 1.", one(now.epoch.into()));
    text.family("spnn_batch", "gauge", "Mini-batch within the epoch, from 0.", one(now.batch.into()));
    text.family("spnn_rows_total", "counter", "Rows of all mini-batches done, repeated ones included.", one(now.rows));
    let help = "Times that the session was interrupted.";
    text.family("spnn_interruptions_total", "counter", help, one(now.interruptions));
    text.family("spnn_checkpoints_total", "counter", "Checkpoints begun.", one(now.checkpoints));
    let sent = now.sent.iter().map(|(to, kind, n)| (format!("{{peer=\"{to}\",kind=\"{}\"}}", kind.name()), *n));
    text.family("spnn_sent_bytes_total", "counter", "Application bytes sent.", sent);
    let received = now.received.iter().map(|(from, n)| (format!("{{peer=\"{from}\"}}"), *n));
    text.family("spnn_received_bytes_total", "counter", "Application bytes received.", received);
    let seconds = now.silent.map(|s| (String::new(), s.as_secs_f64()));
    text.family("spnn_last_message_seconds", "gauge", "Since a message of any peer came.", seconds);
    let expires = [(String::new(), (watched.certificate_expires)())];
    let help = "When this role's certificate expires, in seconds since 1970.";
    text.family("spnn_certificate_expiry_timestamp_seconds", "gauge", help, expires);
    let metric = |value: Option<f64>| value.map(|v| (String::new(), v));
    let test = now.test;
    text.family("spnn_train_loss", "gauge", "Mean loss of the epoch so far.", metric(now.train_loss));
    text.family("spnn_test_loss", "gauge", "Mean loss of the test rows.", metric(test.map(|t| t.loss)));
    text.family(
        "spnn_test_auc",
        "gauge",
        "Area under the ROC curve of the test rows.",
        metric(test.and_then(|t| t.auc)),
    );
    let accuracy = metric(test.and_then(|t| t.accuracy));
    text.family("spnn_test_accuracy", "gauge", "Share of the test rows whose class is predicted.", accuracy);
    let cpu = [(String::new(), usage::cpu_seconds())];
    text.family("process_cpu_seconds_total", "counter", "Processor time used, user and system.", cpu);
    text.family("process_resident_memory_bytes", "gauge", "Resident set.", one(usage::resident_bytes()));
    if let Some(requests) = &watched.requests {
        requests.expose(&mut text);
    }
    text.0
}

/// Metrics in that format.
pub(crate) struct Exposition(String);

impl Exposition {
    /// One metric: what it is, and its samples by labels. Nothing if there are none.
    pub(crate) fn family(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, impl Display)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        // A string takes whatever is written to it.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    /// Samples by upper end, each with those below it; then their sum and count.
    pub(crate) fn histogram(&mut self, name: &str, help: &str, buckets: &[(String, u64)], sum: f64, count: u64) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (labels, value) in buckets {
            let _ = writeln!(self.0, "{name}_bucket{labels} {value}");
        }
        let _ = writeln!(self.0, "{name}_sum {sum}\n{name}_count {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spnn_protocol::{Position, ProtocolError, Step};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn served() -> (SocketAddr, Monitor) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, monitor) = (listener.local_addr().unwrap(), Monitor::default());
        let certificate_expires = Arc::new(|| 4_000_000_000);
        let watched = Watched { role: Role::party(1), monitor: monitor.clone(), certificate_expires, requests: None };
        tokio::spawn(serve(listener, watched));
        (address, monitor)
    }

    /// Sends bytes and reads to the end.
    async fn exchange(address: SocketAddr, sent: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A server that has heard enough may close while we still send.
        let _ = stream.write_all(sent).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn get(address: SocketAddr, path: &str) -> (String, String) {
        let answer = exchange(address, format!("GET {path} HTTP/1.1\r\nHost: role\r\n\r\n").as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn health_follows_the_role() {
        let (address, monitor) = served().await;
        let (status, body) = get(address, "/healthz").await;
        assert!(status == "503" && body.contains("waiting for all roles") && body.contains("party-1"), "{body}");
        monitor.running(4);
        let (status, body) = get(address, "/healthz").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status.as_str(), &body["state"], &body["incarnation"]), ("200", &"running".into(), &4.into()));
        let reason = "no sign of life".to_owned();
        monitor.interrupted(&ProtocolError::PeerGone { peer: Role::Server, step: Step::SETUP, reason });
        let (status, body) = get(address, "/healthz").await;
        assert!(status == "503" && body.contains("server is gone") && body.contains("interrupted"), "{body}");
        monitor.done();
        assert_eq!(get(address, "/healthz").await.0, "200");
        assert_eq!(get(address, "/").await.0, "404");
    }

    #[tokio::test]
    async fn metrics_are_in_the_text_format_of_prometheus() {
        let (address, monitor) = served().await;
        monitor.running(2);
        monitor.at(Position { epoch: 3, batch: 7 });
        monitor.rows_done(64);
        let (status, body) = get(address, "/metrics").await;
        assert_eq!(status, "200");
        for line in [
            "spnn_state{state=\"running\"} 1",
            "spnn_state{state=\"done\"} 0",
            "spnn_incarnation 2",
            "spnn_epoch 3",
            "spnn_batch 7",
            "spnn_rows_total 64",
            "spnn_certificate_expiry_timestamp_seconds 4000000000",
            "# TYPE process_cpu_seconds_total counter",
        ] {
            assert!(body.lines().any(|l| l == line), "{line}:\n{body}");
        }
        // Every sample is a name, perhaps labels, and a number; every name was announced, and none is a metric of the model.
        let mut announced = "";
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                announced = rest.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(name.split('{').next().unwrap(), announced, "{line}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(!body.contains("loss") && !body.contains("auc"), "{body}");
        monitor.results(Some(0.25), None);
        assert!(get(address, "/metrics").await.1.contains("\nspnn_train_loss 0.25\n"));
    }

    #[tokio::test]
    async fn nonsense_is_answered_or_dropped() {
        let (address, monitor) = served().await;
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(64 << 10));
        for sent in ["\r\n\r\n", "\u{16}\u{3}\u{1}", "GET", "BREW /pot HTTP/9\r\n\r\n", &long] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(sent.as_bytes()).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{sent:.20}");
        }
        let post = exchange(address, b"POST /metrics HTTP/1.1\r\nHost: role\r\nContent-Length: 4\r\n\r\nabcd").await;
        assert!(post.starts_with("HTTP/1.1 405"), "{post}");
        monitor.done();
        assert_eq!(get(address, "/healthz").await.0, "200");
    }

    #[tokio::test]
    async fn idle_clients_lose_their_places() {
        let (address, monitor) = served().await;
        monitor.running(1);
        let mut idle = Vec::new();
        for _ in 0..LIMITS.connections {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /healthz HT").await.unwrap();
            idle.push(stream);
        }
        // Waits for a place, and gets one.
        assert_eq!(get(address, "/healthz").await.0, "200");
        for mut stream in idle {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP/1.1 200"));
        }
    }
}
