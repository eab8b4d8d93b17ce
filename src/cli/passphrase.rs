//! Passphrases of private keys: from a file, from the environment, or from someone at a terminal.

use super::CliError;
use spnn::protocol::{KeyFile, Passphrase, PassphraseSource, ProtocolError, Role};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

const VARIABLE: &str = "SPNN_PASSPHRASE";

/// Where the passphrase of a role's key comes from: the file that its configuration names, the environment, or the
/// terminal if there is one and the key needs it.
pub(crate) fn source(key: &Path, file: Option<&Path>) -> Result<PassphraseSource, CliError> {
    if let Some(file) = file {
        return Ok(PassphraseSource::File(file.to_owned()));
    }
    let given = |passphrase| PassphraseSource::Given(Arc::new(passphrase));
    if let Some(passphrase) = from_environment()? {
        return Ok(given(passphrase));
    }
    let encrypted = KeyFile::read(key).map_err(configuration)?.is_encrypted();
    if encrypted && std::io::stdin().is_terminal() {
        return Ok(given(ask(&format!("passphrase of {}: ", key.display()))?));
    }
    Ok(PassphraseSource::Nowhere)
}

/// The passphrase of a key that is there, or nothing if it has none.
pub(crate) fn of(key: &Path, file: Option<&Path>) -> Result<Option<Passphrase>, CliError> {
    if !KeyFile::read(key).map_err(configuration)?.is_encrypted() {
        return Ok(None);
    }
    if let Some(file) = file {
        return Passphrase::read(file).map(Some).map_err(configuration);
    }
    if let Some(passphrase) = from_environment()? {
        return Ok(Some(passphrase));
    }
    at_terminal(&format!("passphrase of {}: ", key.display())).map(Some)
}

/// A passphrase for a key that is about to be written.
pub(crate) fn new(file: Option<&Path>) -> Result<Passphrase, CliError> {
    if let Some(file) = file {
        return Passphrase::read(file).map_err(configuration);
    }
    let first = at_terminal("new passphrase: ")?;
    let second = at_terminal("the same again: ")?;
    if first != second {
        return Err(CliError::Usage("the two passphrases differ".into()));
    }
    Ok(first)
}

fn at_terminal(prompt: &str) -> Result<Passphrase, CliError> {
    if !std::io::stdin().is_terminal() {
        let message = format!("{} no terminal to ask at; name a file with the passphrase", prompt.trim_end());
        return Err(CliError::Usage(message));
    }
    ask(prompt)
}

fn ask(prompt: &str) -> Result<Passphrase, CliError> {
    let typed = rpassword::prompt_password(prompt);
    let typed = typed.map_err(|source| CliError::File { file: "terminal".into(), source })?;
    passphrase(typed.into_bytes())
}

fn from_environment() -> Result<Option<Passphrase>, CliError> {
    std::env::var_os(VARIABLE).map(|v| passphrase(v.into_encoded_bytes())).transpose()
}

fn passphrase(bytes: Vec<u8>) -> Result<Passphrase, CliError> {
    Passphrase::new(Zeroizing::new(bytes)).map_err(|e| CliError::Usage(e.to_owned()))
}

fn configuration(source: ProtocolError) -> CliError {
    CliError::Protocol { me: Role::Coordinator, source }
}
