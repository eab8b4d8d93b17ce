//! `spnn audit`.

use super::{AuditCommand, CliError};
use spnn::protocol::audit::{AuditError, Entry, Row, Verified, compare, verify};
use spnn::protocol::{Authority, Role};
use std::path::{Path, PathBuf};

#[expect(clippy::print_stdout, reason = "what this command is for")]
pub(crate) fn run(command: AuditCommand) -> Result<(), CliError> {
    match command {
        AuditCommand::Verify { logs, authority } => check(&logs, authority.as_deref()),
        AuditCommand::Show { file } => {
            print!("{}", in_words(&read(&file)?));
            Ok(())
        }
        AuditCommand::Export { file, csv, json: _ } => {
            let log = read(&file)?;
            if csv {
                println!("time,role,incarnation,what,peer,kind,phase,epoch,count,bytes,rows,columns,digest");
            }
            for row in log.rows() {
                println!("{}", if csv { csv_line(&row) } else { json_line(&row)? });
            }
            Ok(())
        }
    }
}

fn read(file: &Path) -> Result<Verified, CliError> {
    verify(file, None).map_err(|e| CliError::Usage(e.to_string()))
}

#[expect(clippy::print_stdout, reason = "what this command is for")]
fn check(files: &[PathBuf], authority: Option<&Path>) -> Result<(), CliError> {
    let authority = authority.map(Authority::load).transpose();
    let authority = authority.map_err(|source| CliError::Protocol { me: Role::Coordinator, source })?;
    let mut wrong = 0;
    let mut logs = Vec::new();
    for file in files {
        match verify(file, authority.as_ref()) {
            Ok(log) => {
                println!("good: {}: {}, {} lines{}", file.display(), log.role, log.lines.len(), reservations(&log));
                logs.push(log);
            }
            Err(e @ AuditError::File { .. }) => return Err(CliError::Usage(e.to_string())),
            Err(e) => {
                wrong += 1;
                println!("wrong: {e}");
            }
        }
    }
    for difference in compare(&logs) {
        wrong += 1;
        println!("wrong: {difference}");
    }
    if wrong > 0 {
        return Err(CliError::Usage(format!("{wrong} of the checks above failed")));
    }
    if logs.len() > 1 {
        println!("what these roles say they sent to each other is what they say they received");
    }
    Ok(())
}

/// What nothing vouches for.
fn reservations(log: &Verified) -> String {
    let unsigned = log.lines.len() as u64 - log.signed;
    let mut text = match (log.signed, unsigned) {
        (0, _) => ", none of them signed".to_owned(),
        (_, 0) => ", all signed".to_owned(),
        (_, n) => format!(", the last {n} not signed"),
    };
    if log.torn > 0 {
        text += &format!("; an unfinished last line of {} bytes", log.torn);
    }
    text
}

fn in_words(log: &Verified) -> String {
    let mut text = format!("{}: {} lines{}\n", log.role, log.lines.len(), reservations(log));
    for line in &log.lines {
        let what = match &line.entry {
            Entry::Start { session, task, incarnation, contract, .. } => {
                let session: String = session.chars().take(12).collect();
                let kind = if *contract { "contract" } else { "session" };
                format!("start {incarnation}: {task}, {kind} {session}…")
            }
            Entry::Torn { bytes, .. } => format!("an unfinished line of {bytes} bytes was removed after a crash"),
            Entry::Opened { what, phase, epoch, times, rows, width, .. } => {
                format!("opened {what}: {phase} {epoch}, {times} times, {rows} rows of {width}")
            }
            Entry::Released { records, per_record_max, .. } => {
                format!("released predictions of {records} records, each at most {per_record_max} times")
            }
            Entry::Interrupted { incarnation, cause, culprit } => {
                format!("start {incarnation} was interrupted: cause {cause} at {culprit}")
            }
            Entry::End { incarnation, .. } => format!("start {incarnation} is done"),
            Entry::Traffic { .. } | Entry::Head { .. } | Entry::PeerHead { .. } => continue,
        };
        text += &format!("  {} {what}\n", line.time);
    }
    text += "sent in all:\n";
    for ((peer, kind), bytes) in log.egress() {
        text += &format!("  {:<12} {kind:<22} {bytes:>15} bytes\n", peer.to_string());
    }
    text
}

/// No value holds a comma or a quotation mark: names of roles and kinds, numbers and digits.
fn csv_line(row: &Row<'_>) -> String {
    let bytes = row.bytes.map(|b| b.to_string()).unwrap_or_default();
    let Row { time, role, incarnation, what, peer, kind, phase, epoch, count, rows, columns, .. } = row;
    let digest = row.digest.unwrap_or_default();
    format!(
        "{time},{role},{incarnation},{what},{peer},{kind},{phase},{epoch},{count},{bytes},{rows},{columns},{digest}"
    )
}

fn json_line(row: &Row<'_>) -> Result<String, CliError> {
    serde_json::to_string(row).map_err(|e| CliError::Usage(e.to_string()))
}
