//! `spnn pki`.

use super::{CliError, Pki, passphrase};
use spnn::pki::{Authority, Validity, init, issue, renew, request, revoke, set_passphrase, sign};
use spnn::protocol::{Passphrase, Role, inspect_certificate};
use std::path::{Path, PathBuf};

#[expect(clippy::print_stdout, reason = "what this command is for")]
pub(crate) fn run(command: Pki) -> Result<(), CliError> {
    match command {
        Pki::Init { dir, name, days, encryption } => {
            let authority = Authority { directory: dir, passphrase: encryption.passphrase()? };
            let file = init(&authority, &name, Validity::days(days))?;
            println!("authority: {} (hand out), {} (keep)", file.display(), authority.key().display());
        }
        Pki::Request { role, org, out, encryption } => {
            let file = request(&out, role, &org, encryption.passphrase()?.as_ref())?;
            println!("send {} to the authority; the key beside it stays here", file.display());
        }
        Pki::Renew { certificate, key, passphrase_file } => {
            let key = key.unwrap_or_else(|| certificate.with_extension("key"));
            let file = renew(&certificate, &key, passphrase::of(&key, passphrase_file.as_deref())?.as_ref())?;
            println!("send {} to the authority; key and fingerprint stay as they are", file.display());
        }
        Pki::Passphrase { key, old, new, remove } => {
            let old = passphrase::of(&key, old.as_deref())?;
            let new = if remove { None } else { Some(passphrase::new(new.as_deref())?) };
            set_passphrase(&key, old.as_ref(), new.as_ref())?;
            let now = if remove { "in the clear" } else { "encrypted" };
            println!("{} is {now}", key.display());
        }
        Pki::Issue { role, dir, request: Some(request), days, authority_passphrase_file, .. } => {
            let file = sign(&authority(dir, authority_passphrase_file)?, &request, role, Validity::days(days))?;
            show(&file)?;
        }
        Pki::Issue { role, dir, request: None, out, org, days, encryption, authority_passphrase_file } => {
            let authority = authority(dir, authority_passphrase_file)?;
            let passphrase = encryption.passphrase()?;
            let file = issue(&authority, &out, role, &org, Validity::days(days), passphrase.as_ref())?;
            show(&file)?;
        }
        Pki::Revoke { dir, certificate, authority_passphrase_file } => {
            let file = revoke(&authority(dir, authority_passphrase_file)?, &certificate)?;
            println!("hand out {}; roles that name it as 'revoked' refuse that certificate", file.display());
        }
        Pki::Show { certificate } => show(&certificate)?,
    }
    Ok(())
}

impl super::Encryption {
    /// What the new key is to be encrypted under.
    fn passphrase(&self) -> Result<Option<Passphrase>, CliError> {
        let wanted = self.encrypt || self.passphrase_file.is_some();
        wanted.then(|| passphrase::new(self.passphrase_file.as_deref())).transpose()
    }
}

fn authority(directory: PathBuf, passphrase_file: Option<PathBuf>) -> Result<Authority, CliError> {
    let mut authority = Authority { directory, passphrase: None };
    authority.passphrase = passphrase::of(&authority.key(), passphrase_file.as_deref())?;
    Ok(authority)
}

#[expect(clippy::print_stdout, reason = "what this command is for")]
fn show(file: &Path) -> Result<(), CliError> {
    let (role, fingerprint) =
        inspect_certificate(file).map_err(|source| CliError::Protocol { me: Role::Coordinator, source })?;
    println!("{} {role} {fingerprint}", file.display());
    Ok(())
}
