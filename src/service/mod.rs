//! Predictions over HTTP, at the label holder: `POST /v1/scores`, described by `GET /v1/openapi.json`.
//!
//! Whoever may reach the address may have records scored, and learns their scores, so it belongs on loopback, or behind a
//! token and a proxy that encrypts. Requests wait in a bounded queue; one that finds no place, or whose deadline comes first, is
//! told so at once, as is every request while a peer of the session is gone.

mod request;

#[cfg(test)]
mod tests;

use crate::http::{self, Limits};
use crate::monitor::{self, Exposition, Watched};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use request::{Format, Refused};
use sha2::{Digest, Sha256};
use spnn_party::data::Columns;
use spnn_party::serve::{NoAnswer, Questions, Scores};
use spnn_protocol::Activity;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// What the service needs to know.
pub struct Service {
    /// Whoever answers.
    pub questions: Questions,
    /// The columns that ids are in.
    pub id: Columns,
    /// The session's digest, which names the model in answers.
    pub model: String,
    /// A request waits at most this long for its answer.
    pub deadline: Duration,
    /// Most ids of a request.
    pub ids_per_request_max: usize,
    /// Clients have to show this token, if there is one; its SHA-256.
    pub token: Option<[u8; 32]>,
    /// Health and metrics, which are served at the same address as well; requests are counted there.
    pub watched: Watched,
}

/// Requests so far, by what became of them. Copies share the counts.
#[derive(Clone)]
pub struct Requests(Arc<Counts>);

struct Counts {
    questions: Questions,
    by_status: [AtomicU64; STATUSES.len()],
    seconds: [AtomicU64; BUCKETS.len()],
    microseconds: AtomicU64,
    ids: AtomicU64,
}

/// A request has at most so many bytes: an id may have some 160.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Bodies that are read and taken apart at a time, which bounds the memory for them.
const BODIES_MAX: usize = 16;
/// A client that has nothing to ask for so long is let go; it may come again.
const LIMITS: Limits = Limits { connections: 256, idle: Duration::from_secs(60), connection: None };
/// What a request may be answered with.
const STATUSES: [StatusCode; 9] = [
    StatusCode::OK,
    StatusCode::BAD_REQUEST,
    StatusCode::UNAUTHORIZED,
    StatusCode::NOT_ACCEPTABLE,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::MISDIRECTED_REQUEST,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];
/// Upper ends of the histogram of answered requests, in milliseconds.
const BUCKETS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];

impl Requests {
    /// None so far.
    #[must_use]
    pub fn new(questions: Questions) -> Self {
        Self(Arc::new(Counts {
            questions,
            by_status: Default::default(),
            seconds: Default::default(),
            microseconds: AtomicU64::default(),
            ids: AtomicU64::default(),
        }))
    }

    fn count(&self, status: StatusCode, took: Duration, ids: usize) {
        if let Some(at) = STATUSES.iter().position(|s| *s == status) {
            self.0.by_status[at].fetch_add(1, Relaxed);
        }
        if status != StatusCode::OK {
            return;
        }
        self.0.ids.fetch_add(ids as u64, Relaxed);
        self.0.microseconds.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
        if let Some(at) = BUCKETS.iter().position(|ms| took <= Duration::from_millis(*ms)) {
            self.0.seconds[at].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn expose(&self, text: &mut Exposition) {
        let counts = &self.0;
        let by_status = STATUSES.iter().zip(&counts.by_status);
        let by_status: Vec<_> =
            by_status.map(|(s, n)| (format!("{{status=\"{}\"}}", s.as_u16()), n.load(Relaxed))).collect();
        let answered = counts.by_status[0].load(Relaxed);
        text.family("spnn_requests_total", "counter", "Requests for scores, by HTTP status.", by_status);
        let one = |n: u64| [(String::new(), n)];
        text.family("spnn_requested_ids_total", "counter", "Ids of answered requests.", one(counts.ids.load(Relaxed)));
        let waiting = u64::from(counts.questions.waiting());
        text.family("spnn_waiting_ids", "gauge", "Ids that wait for their scores.", one(waiting));
        let mut sum = 0;
        let mut buckets: Vec<(String, u64)> = Vec::new();
        for (ms, n) in BUCKETS.iter().zip(&counts.seconds) {
            sum += n.load(Relaxed);
            #[expect(clippy::cast_precision_loss, reason = "at most 10,000")]
            buckets.push((format!("{{le=\"{}\"}}", *ms as f64 / 1000.0), sum));
        }
        buckets.push(("{le=\"+Inf\"}".into(), answered));
        #[expect(clippy::cast_precision_loss, reason = "a metric")]
        let seconds = counts.microseconds.load(Relaxed) as f64 / 1e6;
        text.histogram("spnn_request_seconds", "Time of answered requests.", &buckets, seconds, answered);
    }
}

/// What handlers share.
struct Shared {
    service: Service,
    bodies: Semaphore,
}

/// Serves predictions until it is dropped.
pub async fn serve(listener: TcpListener, service: Service) {
    http::serve(listener, router(service), LIMITS).await;
}

fn router(service: Service) -> Router {
    let watched = service.watched.clone();
    let shared = Arc::new(Shared { service, bodies: Semaphore::new(BODIES_MAX) });
    Router::new()
        .route("/v1/scores", post(scores))
        .route("/v1/openapi.json", get(openapi))
        .with_state(shared)
        .merge(monitor::router(watched))
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json"))
}

async fn scores(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let began = Instant::now();
    let (response, ids) = match shared.answer(request, began).await {
        Ok((response, ids)) => (response, ids),
        Err(refused) => (refused.into_response(), 0),
    };
    if let Some(requests) = &shared.service.watched.requests {
        requests.count(response.status(), began.elapsed(), ids);
    }
    response
}

impl Shared {
    /// The answer, and how many ids it has.
    async fn answer(&self, request: Request<Body>, began: Instant) -> Result<(Response, usize), Refused> {
        let Service { questions, id, model, ids_per_request_max, .. } = &self.service;
        let (head, body) = request.into_parts();
        let (format, wanted, deadline) = match self.check(&head) {
            Ok((format, wanted, longest)) => (format, wanted, began + longest),
            Err(refused) => {
                // A client that is still sending would see its connection break, not the answer.
                request::discard(body, BODY_BYTES_MAX).await;
                return Err(refused);
            }
        };
        let in_time = tokio::time::timeout_at(deadline.into(), async {
            // Never closed, so there always will be a place.
            let _place = self.bodies.acquire().await;
            request::read(body, format, BODY_BYTES_MAX, id.clone(), *ids_per_request_max).await
        });
        let ids = in_time.await.unwrap_or_else(|_| Err(NoAnswer::TooLate.into()))?;
        let scores: Scores = questions.ask(ids.clone(), deadline.into()).await?;
        let rows = ids.len();
        let (model, parts) = (model.clone(), id.names().len());
        // A large answer takes a while to write down.
        let writing = tokio::task::spawn_blocking(move || request::write(wanted, &model, parts, &ids, &scores));
        let body = writing.await.map_err(|e| e.to_string()).flatten().map_err(|e| Refused::internal(&e))?;
        Ok((([(header::CONTENT_TYPE, wanted.media_type())], body).into_response(), rows))
    }

    /// What can be said of a request from its head: its format, that of its answer, and how long it waits.
    fn check(&self, head: &Parts) -> Result<(Format, Format, Duration), Refused> {
        self.check_token(&head.headers)?;
        self.check_host(&head.headers)?;
        let format = Format::of_request(&head.headers)?;
        let wanted = Format::of_answer(&head.headers, format)?;
        let longest = request::deadline(&head.uri, self.service.deadline)?;
        let now = self.service.watched.monitor.snapshot();
        if now.activity != Activity::Running {
            let reason = now.reason.unwrap_or_else(|| "waiting for all roles to come".into());
            return Err(Refused::unavailable(&format!("{}: {reason}", now.activity.name())));
        }
        Ok((format, wanted, longest))
    }

    /// Without a token, only whoever calls this machine by a name of its own is answered: a page in a browser, whose name
    /// was made to lead here, cannot ask.
    fn check_host(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
        let is_address = |host: &str| host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let is_here = match host.parse::<SocketAddr>() {
            Ok(address) => address.ip().is_loopback(),
            Err(_) => {
                let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
                name.eq_ignore_ascii_case("localhost") || is_address(host)
            }
        };
        if self.service.token.is_some() || is_here { Ok(()) } else { Err(Refused::misdirected(host)) }
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(expected) = self.service.token else { return Ok(()) };
        let shown = headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok()?.strip_prefix("Bearer "));
        // Digests, so that how long it takes says nothing about the token.
        let found: Option<[u8; 32]> = shown.map(|token| Sha256::digest(token.trim()).into());
        if found == Some(expected) { Ok(()) } else { Err(Refused::unauthorized()) }
    }
}
