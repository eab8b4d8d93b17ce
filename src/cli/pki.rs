//! `spnn pki`.

use super::{CliError, Pki};
use spnn::pki::{Validity, init, issue, request, revoke, sign};
use spnn::protocol::{Role, inspect_certificate};
use std::path::Path;

#[expect(clippy::print_stdout, reason = "what this command is for")]
pub(crate) fn run(command: Pki) -> Result<(), CliError> {
    match command {
        Pki::Init { dir, name, days } => {
            let file = init(&dir, &name, Validity::days(days))?;
            println!("authority: {} (hand out), {} (keep)", file.display(), dir.join("ca.key").display());
        }
        Pki::Request { role, org, out } => {
            let file = request(&out, role, &org)?;
            println!("send {} to the authority; the key beside it stays here", file.display());
        }
        Pki::Issue { role, dir, request: Some(request), days, .. } => {
            let file = sign(&dir, &request, role, Validity::days(days))?;
            show(&file)?;
        }
        Pki::Issue { role, dir, request: None, out, org, days } => {
            let file = issue(&dir, &out, role, &org, Validity::days(days))?;
            show(&file)?;
        }
        Pki::Revoke { dir, certificate } => {
            let file = revoke(&dir, &certificate)?;
            println!("hand out {}; roles that name it as 'revoked' refuse that certificate", file.display());
        }
        Pki::Show { certificate } => show(&certificate)?,
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what this command is for")]
fn show(file: &Path) -> Result<(), CliError> {
    let (role, fingerprint) =
        inspect_certificate(file).map_err(|source| CliError::Protocol { me: Role::Coordinator, source })?;
    println!("{} {role} {fingerprint}", file.display());
    Ok(())
}
