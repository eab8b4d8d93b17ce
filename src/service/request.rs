//! Bodies of requests and answers: JSON, CSV and Parquet.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use spnn_party::data::{Columns, ID_SEPARATOR, TableFormat, read_ids, write_answer};
use spnn_party::serve::{NoAnswer, Scores, Status};
use std::time::Duration;

/// How ids come, or scores go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Table(TableFormat),
}

const ALL: [Format; 3] = [Format::Json, Format::Table(TableFormat::Csv), Format::Table(TableFormat::Parquet)];

/// Why a request has no scores.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    message: String,
}

impl Format {
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Table(TableFormat::Csv) => "text/csv",
            Self::Table(TableFormat::Parquet) => "application/vnd.apache.parquet",
        }
    }

    /// What the request says that it is. It has to say so: a page in a browser cannot, without asking first.
    pub(super) fn of_request(headers: &HeaderMap) -> Result<Self, Refused> {
        let found = headers.get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or_default();
        Self::named(found).ok_or_else(|| {
            let message = format!("Content-Type is \"{found}\"; expected {}", names());
            Refused { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, message }
        })
    }

    /// What the client wants: the first that it names and that there is; as the request was, if it does not care.
    pub(super) fn of_answer(headers: &HeaderMap, of_request: Self) -> Result<Self, Refused> {
        let Some(wanted) = headers.get(header::ACCEPT).and_then(|h| h.to_str().ok()) else { return Ok(of_request) };
        let mut wishes = wanted.split(',').map(|wish| wish.split(';').next().unwrap_or_default().trim());
        let of = |wish: &str| if wish == "*/*" { Some(of_request) } else { Self::named(wish) };
        wishes.find_map(of).ok_or_else(|| Refused {
            status: StatusCode::NOT_ACCEPTABLE,
            message: format!("Accept is \"{wanted}\"; expected {}", names()),
        })
    }

    fn named(text: &str) -> Option<Self> {
        let name = text.split(';').next().unwrap_or_default().trim();
        ALL.into_iter().find(|format| format.media_type().eq_ignore_ascii_case(name))
    }
}

fn names() -> String {
    ALL.map(Format::media_type).join(", ")
}

/// `deadline_ms` of the address: shorter than the service's, if anything.
pub(super) fn deadline(uri: &Uri, longest: Duration) -> Result<Duration, Refused> {
    let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let mut deadline = longest;
    for pair in pairs {
        let ms = pair.strip_prefix("deadline_ms=").and_then(|ms| ms.parse().ok());
        let Some(ms) = ms.filter(|ms| *ms > 0) else {
            return Err(Refused::bad(format!("\"{pair}\" in the address; expected deadline_ms=N, at least 1")));
        };
        deadline = longest.min(Duration::from_millis(ms));
    }
    Ok(deadline)
}

/// Reads a body that nobody wants, for a moment and as far as it may be long.
pub(super) async fn discard(body: Body, bytes_max: usize) {
    let mut stream = body.into_data_stream();
    let reading = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = stream.next().await {
            bytes += frame.len();
            if bytes > bytes_max {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), reading).await;
}

/// The ids of a request, in its order; the parts of one made of several columns with [`ID_SEPARATOR`] between them.
pub(super) async fn read(
    body: Body,
    format: Format,
    bytes_max: usize,
    id: Columns,
    ids_max: usize,
) -> Result<Vec<String>, Refused> {
    let bytes = axum::body::to_bytes(body, bytes_max).await.map_err(|_| Refused {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        message: format!("the request is cut off, or longer than {bytes_max} bytes: send it in parts"),
    })?;
    let reading = tokio::task::spawn_blocking(move || match format {
        Format::Json => from_json(&bytes, id.names().len()),
        Format::Table(format) => from_table(bytes, format, &id, ids_max),
    });
    let ids = reading.await.map_err(|e| Refused::internal(&e.to_string()))??;
    match ids.len() {
        0 => Err(Refused::bad("no ids".into())),
        n if n > ids_max => Err(Refused {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            message: format!("{n} ids; at most {ids_max} are scored at a time: send them in parts"),
        }),
        _ => Ok(ids),
    }
}

fn from_table(bytes: Bytes, format: TableFormat, id: &Columns, ids_max: usize) -> Result<Vec<String>, Refused> {
    let ids = read_ids(bytes, format, id, ids_max).map_err(|e| Refused::bad(e.to_string()))?;
    Ok(ids.iter().map(|id| id.into_owned()).collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    ids: Vec<Id>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Whole(Part),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Part {
    Integer(i64),
    Text(String),
}

impl Part {
    fn text(self) -> String {
        match self {
            Self::Integer(n) => n.to_string(),
            Self::Text(text) => text.trim().to_owned(),
        }
    }
}

fn from_json(bytes: &[u8], parts: usize) -> Result<Vec<String>, Refused> {
    let Asked { ids } = serde_json::from_slice(bytes).map_err(|e| {
        Refused::bad(format!(
            "{e}; expected {{\"ids\": [\"a\", \"b\"]}}, an id of several columns as a list of its parts"
        ))
    })?;
    let id = |(at, id): (usize, Id)| {
        let id: Vec<String> = match id {
            Id::Whole(part) => vec![part.text()],
            Id::Parts(parts) => parts.into_iter().map(Part::text).collect(),
        };
        if id.len() != parts {
            return Err(Refused::bad(format!("ids[{at}] has {} parts; an id has {parts} here", id.len())));
        }
        if id.iter().any(|part| part.is_empty() || part.contains(ID_SEPARATOR)) {
            return Err(Refused::bad(format!("ids[{at}] is empty, or has a control character in it")));
        }
        Ok(id.join(&ID_SEPARATOR.to_string()))
    };
    ids.into_iter().enumerate().map(id).collect()
}

/// The body of an answer.
pub(super) fn write(
    format: Format,
    model: &str,
    parts: usize,
    ids: &[String],
    scores: &Scores,
) -> Result<Vec<u8>, String> {
    match format {
        Format::Json => {
            let answer = Answer { model, scores: Lines { parts, ids, scores } };
            serde_json::to_vec(&answer).map_err(|e| e.to_string())
        }
        Format::Table(format) => write_answer(format, ids, scores),
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    scores: Lines<'a>,
}

struct Lines<'a> {
    parts: usize,
    ids: &'a [String],
    scores: &'a Scores,
}

#[derive(Serialize)]
struct Line<'a> {
    id: AnswerId<'a>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<Score<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum AnswerId<'a> {
    Whole(&'a str),
    Parts(Vec<&'a str>),
}

#[derive(Serialize)]
#[serde(untagged)]
enum Score<'a> {
    One(f32),
    Several(&'a [f32]),
}

impl Serialize for Lines<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut lines = serializer.serialize_seq(Some(self.ids.len()))?;
        for ((id, status), row) in self.ids.iter().zip(&self.scores.status).zip(self.scores.values.rows()) {
            let id = match self.parts {
                1 => AnswerId::Whole(id),
                _ => AnswerId::Parts(id.split(ID_SEPARATOR).collect()),
            };
            let score = match row.to_slice() {
                Some(&[one]) => Score::One(one),
                several => Score::Several(several.unwrap_or_default()),
            };
            let score = (*status == Status::Scored).then_some(score);
            lines.serialize_element(&Line { id, status: status.name(), score })?;
        }
        lines.end()
    }
}

impl Refused {
    fn bad(message: String) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message }
    }

    pub(super) fn unauthorized() -> Self {
        let message = "this service wants a token: Authorization: Bearer TOKEN".into();
        Self { status: StatusCode::UNAUTHORIZED, message }
    }

    pub(super) fn misdirected(host: &str) -> Self {
        let message = format!("Host is \"{host}\"; without a token, only this machine's own address may be asked");
        Self { status: StatusCode::MISDIRECTED_REQUEST, message }
    }

    pub(super) fn unavailable(reason: &str) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, message: reason.into() }
    }

    pub(super) fn internal(reason: &str) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: reason.into() }
    }
}

impl From<NoAnswer> for Refused {
    fn from(no: NoAnswer) -> Self {
        let status = match no {
            NoAnswer::Full { .. } | NoAnswer::Interrupted(_) => StatusCode::SERVICE_UNAVAILABLE,
            NoAnswer::TooLate => StatusCode::GATEWAY_TIMEOUT,
        };
        Self { status, message: no.to_string() }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.message }).to_string() + "\n";
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}
