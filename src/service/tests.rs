use super::*;
use spnn_protocol::{Monitor, ProtocolError, Role, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A service for ids of two columns that nobody answers.
async fn unanswered(token: Option<&str>) -> (SocketAddr, Monitor) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, monitor) = (listener.local_addr().unwrap(), Monitor::default());
    let questions = Questions::new(3);
    let requests = Some(Requests::new(questions.clone()));
    let certificate_expires = Arc::new(|| 4_000_000_000);
    let watched = Watched { role: Role::party(0), monitor: monitor.clone(), certificate_expires, requests };
    let service = Service {
        questions,
        id: Columns::Many(vec!["company".into(), "year".into()]),
        model: "0a".into(),
        deadline: Duration::from_millis(200),
        ids_per_request_max: 3,
        token: token.map(|token| Sha256::digest(token).into()),
        watched,
    };
    tokio::spawn(serve(listener, service));
    (address, monitor)
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

async fn ask(address: SocketAddr, path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    exchange(address, &format!("{head}{body}")).await
}

const JSON: &str = "Content-Type: application/json\r\n";
const CSV: &str = "Content-Type: text/csv\r\n";
const IDS: &str = r#"{"ids": [["a", 2020]]}"#;

#[tokio::test]
async fn what_is_wrong_with_a_request_is_named() {
    let (address, monitor) = unanswered(None).await;
    monitor.running(1);
    let parquet = "Content-Type: application/vnd.apache.parquet\r\n";
    let wants_html = format!("{JSON}Accept: text/html\r\n");
    let cases = [
        ("/v1/scores", "", IDS, 415, "expected application/json, text/csv"),
        ("/v1/scores", "Content-Type: text/plain\r\n", IDS, 415, "text/plain"),
        ("/v1/scores", wants_html.as_str(), IDS, 406, "text/html"),
        ("/v1/scores", JSON, "{}", 400, "missing field `ids`"),
        ("/v1/scores", JSON, r#"{"ids": []}"#, 400, "no ids"),
        ("/v1/scores", JSON, r#"{"ids": [["a", 1], "b"]}"#, 400, "ids[1] has 1 parts; an id has 2 here"),
        ("/v1/scores", JSON, r#"{"ids": [["a", " "]]}"#, 400, "ids[0] is empty"),
        ("/v1/scores", JSON, r#"{"ids": [["a", 1.5]]}"#, 400, "expected"),
        ("/v1/scores?deadline=5", JSON, IDS, 400, "deadline_ms"),
        ("/v1/scores?deadline_ms=0", JSON, IDS, 400, "at least 1"),
        ("/v1/scores", JSON, r#"{"ids": [["a",1],["a",2],["a",3],["a",4]]}"#, 413, "at most 3"),
        ("/v1/scores", CSV, "company\nx\n", 400, "no column `year`"),
        ("/v1/scores", CSV, "company,year\nx,\n", 400, "line 2"),
        ("/v1/scores", CSV, "company,year\na,1\na,2\na,3\na,4\n", 400, "at most 3 rows"),
        ("/v1/scores", parquet, "company,year\na,1\n", 400, "request"),
        ("/v2/scores", JSON, IDS, 404, ""),
    ];
    for (path, headers, body, status, named) in cases {
        let answer = ask(address, path, headers, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} {headers} {body}\n{answer}");
        assert!(answer.contains(named), "'{named}' is not in\n{answer}");
    }
    let get = exchange(address, "GET /v1/scores HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: close\r\n\r\n").await;
    assert!(get.starts_with("HTTP/1.1 405"), "{get}");
    let metrics = exchange(address, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: close\r\n\r\n").await;
    assert!(metrics.contains("spnn_requests_total{status=\"400\"} 11"), "{metrics}");
    assert!(metrics.contains("spnn_request_seconds_bucket{le=\"+Inf\"} 0"), "{metrics}");
}

#[tokio::test]
async fn a_name_that_was_made_to_lead_here_is_not_answered() {
    let (address, monitor) = unanswered(None).await;
    monitor.running(1);
    let asked = async |host: &str| {
        let length = IDS.len();
        let head = format!("POST /v1/scores?deadline_ms=5 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        exchange(address, &format!("{head}{JSON}Content-Length: {length}\r\n\r\n{IDS}")).await
    };
    for host in ["evil.example", "evil.example:8080", "192.168.1.7:8080", "localhost.evil.example"] {
        let answer = asked(host).await;
        assert!(answer.starts_with("HTTP/1.1 421") && answer.contains(host), "{host}: {answer}");
    }
    for host in ["127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "localhost", "LOCALHOST:8080"] {
        let answer = asked(host).await;
        // Nobody answers here: too late, or too many wait.
        assert!(answer.starts_with("HTTP/1.1 50"), "{host}: {answer}");
    }
    let (address, monitor) = unanswered(Some("secret")).await;
    monitor.running(1);
    let head = format!("{JSON}Authorization: Bearer secret\r\nHost: scores.example\r\n");
    let length = IDS.len();
    let request =
        format!("POST /v1/scores HTTP/1.1\r\n{head}Connection: close\r\nContent-Length: {length}\r\n\r\n{IDS}");
    assert!(exchange(address, &request).await.starts_with("HTTP/1.1 504"));
}

#[tokio::test]
async fn while_nobody_answers_requests_are_told_so() {
    let (address, monitor) = unanswered(None).await;
    let joining = ask(address, "/v1/scores", JSON, IDS).await;
    assert!(joining.starts_with("HTTP/1.1 503") && joining.contains("waiting for all roles"), "{joining}");
    monitor.running(1);
    let late = ask(address, "/v1/scores?deadline_ms=20", JSON, IDS).await;
    assert!(late.starts_with("HTTP/1.1 504") && late.contains("deadline"), "{late}");
    // Its place is taken until whoever answers sees that nobody waits.
    let full = ask(address, "/v1/scores", CSV, "company,year\na,1\na,2\na,3\n").await;
    assert!(full.starts_with("HTTP/1.1 503") && full.contains("1 ids wait"), "{full}");
    assert!(full.contains("retry-after: 1"), "{full}");
    let reason = "no sign of life".to_owned();
    monitor.interrupted(&ProtocolError::PeerGone { peer: Role::Server, step: Step::SETUP, reason });
    let gone = ask(address, "/v1/scores", JSON, IDS).await;
    assert!(gone.starts_with("HTTP/1.1 503") && gone.contains("server is gone"), "{gone}");
}

#[tokio::test]
async fn without_the_token_nothing_is_said() {
    let (address, monitor) = unanswered(Some("secret")).await;
    monitor.running(1);
    for shown in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic secret\r\n"] {
        let answer = ask(address, "/v1/scores", &format!("{JSON}{shown}"), IDS).await;
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("www-authenticate"), "{answer}");
    }
    let right = format!("{JSON}Authorization: Bearer secret\r\n");
    assert!(ask(address, "/v1/scores", &right, IDS).await.starts_with("HTTP/1.1 504"));
}

#[test]
fn every_answer_of_the_description_is_counted_and_every_one_that_is_given_is_described() {
    let described: serde_json::Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
    let responses = described["paths"]["/v1/scores"]["post"]["responses"].as_object().unwrap();
    let mut named: Vec<u16> = responses.keys().map(|status| status.parse().unwrap()).collect();
    named.sort_unstable();
    assert_eq!(named, STATUSES.map(|status| status.as_u16()));
    // What it refers to is there.
    let text = described.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(described.pointer(pointer).is_some(), "{pointer}");
    }
}
