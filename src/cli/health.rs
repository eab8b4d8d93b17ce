//! `spnn health`.

use super::CliError;
use super::config::RoleConfig;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// A role that works answers at once.
const TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[expect(clippy::print_stdout, reason = "what this command is for")]
pub(crate) fn run(config: &Path) -> Result<(), CliError> {
    let address = RoleConfig::read(config)?.monitor.ok_or_else(|| CliError::Config {
        file: config.to_owned(),
        reason: "has no 'monitor', the address that health is served on".into(),
    })?;
    let answer = ask(address).map_err(|e| CliError::Unhealthy(format!("{address} does not answer: {e}")))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) != Some("200") {
        return Err(CliError::Unhealthy(body.trim_end().to_owned()));
    }
    print!("{body}");
    Ok(())
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}
