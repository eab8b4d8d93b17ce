//! `spnn contract`.

use super::config::RoleConfig;
use super::passphrase;
use super::{CliError, Contract, NewContract, SignContract, VerifyContract};
use spnn::party::check_columns;
use spnn::pki::organisation;
use spnn::protocol::contract::{
    ContractError, ContractSignature, ContractTerms, Leak, Signatory, check_signed, signature_file, signatures_beside,
};
use spnn::protocol::{
    Authority, Fingerprint, Identity, IdentityFiles, InferenceKind, Role, SessionConfig, SessionFile, Task,
    inspect_certificate, read_text,
};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::SystemTime;

#[expect(clippy::print_stdout, reason = "what this command is for")]
pub(crate) fn run(command: Contract) -> Result<(), CliError> {
    match command {
        Contract::New(args) => new(&args),
        Contract::Sign(args) => sign(&args),
        Contract::Verify(args) => verify(&args),
        Contract::Show { contract } => {
            let (session, terms) = read(&contract)?;
            print!("{}", in_words(&session, &terms));
            Ok(())
        }
    }
}

#[expect(clippy::print_stdout, reason = "what this command is for")]
fn new(args: &NewContract) -> Result<(), CliError> {
    let read_failed = |source| CliError::File { file: args.session.clone(), source };
    let text = read_text(&args.session, SessionFile::BYTES_MAX).map_err(read_failed)?;
    let file = SessionFile::parse(&text, &args.session)?;
    let session = file.config()?;
    if session.contract.is_some() {
        let reason = "has a [contract] already; write the new one from the session without it".to_owned();
        return Err(CliError::Config { file: args.session.clone(), reason });
    }
    let roles: Vec<Role> = session.roles().collect();
    let mut given = args.organisation.iter().chain(&args.columns).map(|(role, _)| role);
    if let Some(role) = given.find(|role| !roles.contains(role)) {
        return Err(CliError::Usage(format!("{role} does not take part in {}", args.session.display())));
    }
    if let Some(leak) = args.accept.iter().find(|leak| !session.leaks().contains(leak)) {
        return Err(CliError::Usage(format!("this session does not have the leak {leak}")));
    }
    let mut keys = BTreeMap::new();
    for certificate in &args.certificate {
        let (role, key) =
            inspect_certificate(certificate).map_err(|source| CliError::Protocol { me: Role::Coordinator, source })?;
        let twice = keys.insert(role, (key, organisation(certificate)?)).is_some();
        if twice || !roles.contains(&role) {
            let why = if twice { "is a second certificate of" } else { "is a certificate of a role that is not here:" };
            return Err(CliError::Usage(format!("{} {why} {role}", certificate.display())));
        }
    }
    for (role, name) in &args.organisation {
        if let Some((_, organisation)) = keys.get_mut(role) {
            *organisation = Some(name.clone());
        }
    }
    let text = format!("{}\n{}", text.trim_end(), section(args, &file, &session, &keys));
    write_new(&args.out, &text)?;
    println!("wrote {}", args.out.display());
    match SessionFile::read(&args.out).and_then(|file| file.config()) {
        Ok(_) => println!("every role reads it (spnn contract show) and signs it (spnn contract sign)"),
        Err(e) => println!("it is not complete yet: {e}"),
    }
    Ok(())
}

/// The section `[contract]`, with comments where something is left to fill in.
fn section(
    args: &NewContract,
    file: &SessionFile,
    session: &SessionConfig,
    keys: &BTreeMap<Role, (Fingerprint, Option<String>)>,
) -> String {
    let mut text = String::from(
        "\n# The contract. Every role signs all values above and below; not comments, and not where a simulation finds \
         its data.\n[contract]\n",
    );
    let mut line = |key: &str, value: Option<String>, otherwise: &str, comment: &str| {
        let line = value.map_or_else(|| format!("# {key} = {otherwise}"), |value| format!("{key} = {value}"));
        text += &format!("{line:<40} # {comment}\n");
    };
    line("purpose", args.purpose.as_deref().map(quoted), "\"\"", "what the model is for, in words");
    let expires = args.expires.map(|e| quoted(&e.to_string()));
    line("expires", expires, "\"2027-06-30\"", "UTC: the whole day, or a moment, \"2027-06-30T18:00:00Z\"");
    line("outputs", Some("[\"label-holder\"]".into()), "", "who gets predictions");
    let limit = args.predictions_per_record_max.map(|n| n.to_string());
    line("predictions_per_record_max", limit, "1", "how often a record may be scored; any number of times if absent");
    let label = args.label.as_deref().or(file.data.label.as_deref()).map(quoted);
    line("label", label, "\"\"", "the label column, at the label holder");

    text += "# What this session does not prevent. It is a contract only when every name is accepted.\naccepted_leaks = [\n";
    for leak in session.leaks() {
        let accepted = if args.accept.contains(&leak) { "" } else { "# " };
        let _ = writeln!(text, "  # {}\n  {accepted}\"{leak}\",", leak.says());
    }
    text += "]\n\n# The feature columns of each party, by name: it takes part with these and no others.\n[contract.columns]\n";
    for (party, section) in session.party_roles().zip(&file.data.parties) {
        let given = args.columns.iter().find(|(role, _)| *role == party);
        let given: Option<Vec<&str>> = given.map(|(_, names)| names.split(',').map(str::trim).collect());
        let named = section.columns.as_ref().map(|names| names.iter().map(String::as_str).collect());
        let list = |names: Vec<&str>| names.into_iter().map(quoted).collect::<Vec<_>>().join(", ");
        let _ = match given.or(named) {
            Some(names) => writeln!(text, "{party} = [{}]", list(names)),
            None => writeln!(text, "# {party} = []"),
        };
    }
    text += "\n# Who signs: every role once, with the key of its certificate (spnn pki show).\n";
    for role in session.roles() {
        let known = keys.get(&role);
        let organisation = known.and_then(|(_, name)| name.as_deref());
        let key = known.map(|(key, _)| key.to_string());
        let mark = if known.is_some() { "" } else { "# " };
        let unnamed = if organisation.is_some() { "" } else { "# " };
        let _ = writeln!(
            text,
            "{mark}[[contract.signatories]]\n{mark}role = \"{role}\"\n{unnamed}organisation = {}\n{mark}key = {}\n",
            quoted(organisation.unwrap_or_default()),
            quoted(&key.unwrap_or_else(|| "sha256:".into())),
        );
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// A text as TOML.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Never over another file: someone may have signed it.
fn write_new(file: &Path, text: &str) -> Result<(), CliError> {
    let open = OpenOptions::new().write(true).create_new(true).open(file);
    open.and_then(|mut out| out.write_all(text.as_bytes()))
        .map_err(|source| CliError::File { file: file.to_owned(), source })
}

#[expect(clippy::print_stdout, reason = "what this command is for")]
fn sign(args: &SignContract) -> Result<(), CliError> {
    let config = args.config.as_deref().map(RoleConfig::read).transpose()?;
    let contract = args.contract.clone().or_else(|| config.as_ref().map(|c| c.session.clone()));
    let contract = contract.ok_or_else(|| CliError::Usage("name the contract, or --config".into()))?;
    let (session, terms) = read(&contract)?;
    let (identity, configured) = match (&config, &args.certificate, &args.key, &args.authority) {
        (Some(config), ..) => (config.identity()?, config.signatures.clone()),
        (None, Some(certificate), Some(key), Some(authority)) => {
            let passphrase = passphrase::source(key, None)?;
            let files = IdentityFiles { passphrase, ..IdentityFiles::new(certificate, key, authority) };
            let loaded = Identity::load(files);
            (loaded.map_err(|source| CliError::Protocol { me: Role::Coordinator, source })?, None)
        }
        (None, ..) => return Err(CliError::Usage("name --config, or --certificate, --key and --authority".into())),
    };
    let me = identity.role();
    let refused = |e: ContractError| CliError::Protocol { me, source: e.into() };
    // Better found now than when everyone else has signed.
    if let (Role::Party(_), Some(source)) = (me, config.as_ref().and_then(|c| c.data.as_ref())) {
        check_columns(&terms, me, me == session.label_role(), Task::Train, source)
            .map_err(|source| CliError::Party { me, source })?;
    }
    let signature = ContractSignature::sign(&session, &terms, &identity, SystemTime::now()).map_err(refused)?;
    print!("{}", in_words(&session, &terms));
    let directory = args.signatures.clone().or(configured).unwrap_or_else(|| signatures_beside(&contract));
    let file = signature_file(&directory, me);
    signature.write(&file).map_err(|source| CliError::Protocol { me, source })?;
    println!("\nsigned as {me}; send {} to all other roles", file.display());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what this command is for")]
fn verify(args: &VerifyContract) -> Result<(), CliError> {
    let (session, terms) = read(&args.contract)?;
    let authority = Authority::load(&args.authority)
        .and_then(|authority| match &args.revoked {
            Some(revoked) => authority.refusing(revoked),
            None => Ok(authority),
        })
        .map_err(|source| CliError::Protocol { me: Role::Coordinator, source })?;
    let directory = args.signatures.clone().unwrap_or_else(|| signatures_beside(&args.contract));
    let now = SystemTime::now();
    let mut wrong = 0;
    for signed in check_signed(&session, &terms, &directory, &authority, now) {
        match signed {
            Ok(signed) => println!("good: {} ({}), {}", signed.role, signed.organisation, signed.signed_at),
            Err(e) => {
                wrong += 1;
                println!("wrong: {e}");
            }
        }
    }
    if let Err(e) = terms.check_in_force(now) {
        wrong += 1;
        println!("wrong: {e}");
    }
    if wrong > 0 {
        let reason = format!("{wrong} of the checks above failed; no role takes part under this contract");
        return Err(CliError::Usage(format!("{}: {reason}", args.contract.display())));
    }
    println!("{} is signed by all and in force until {}", args.contract.display(), terms.expires);
    Ok(())
}

/// A session file that is a contract.
fn read(file: &Path) -> Result<(SessionConfig, ContractTerms), CliError> {
    let session = SessionFile::read(file)?.config()?;
    let reason = "has no [contract]; make one with: spnn contract new";
    let terms = session.contract.clone();
    let terms = terms.ok_or_else(|| CliError::Config { file: file.to_owned(), reason: reason.into() })?;
    Ok((session, terms))
}

/// What is agreed on, for people.
fn in_words(session: &SessionConfig, terms: &ContractTerms) -> String {
    let holder = session.label_role();
    let name = |role: Role| {
        let organisation = terms.signatory(role).map_or("", |s| &s.organisation);
        format!("{role} ({organisation})")
    };
    let mut text = format!(
        "contract {}, sha256:{}\n\npurpose: {}\nin force until {} (UTC)\n\nwho takes part, and signs:\n",
        session.name,
        session.digest_text(),
        terms.purpose.trim(),
        terms.expires,
    );
    for Signatory { role, key, .. } in &terms.signatories {
        let _ = writeln!(text, "  {}, {key}", name(*role));
    }
    let scored = match session.inference {
        InferenceKind::Open => "",
        InferenceKind::Encrypted => "how rows are scored later: by a server that sees ciphertexts only\n",
    };
    let _ = writeln!(
        text,
        "\nwhat is trained: one network, in at most {} epochs; its first layer, {} wide, is computed together under \"{}\"\n\
         {scored}\non which columns:",
        session.train.epochs, session.model.hidden_width, session.first_layer,
    );
    for (party, columns) in &terms.columns {
        let label = if *party == holder { format!(", and the label {}", terms.label) } else { String::new() };
        let _ = writeln!(text, "  {}: {}{label}", name(*party), columns.join(", "));
    }
    let often = terms.predictions_per_record_max.map_or_else(
        || "any number of times".to_owned(),
        |max| format!("at most {max} {}", if max == 1 { "time" } else { "times" }),
    );
    let _ = writeln!(
        text,
        "\nwho gets predictions: {}; each record is scored {often}\n\nwhat this does not prevent, and everyone accepts:",
        name(holder),
    );
    for leak in &terms.accepted_leaks {
        let _ = writeln!(text, "  {}: {}", Leak::name(*leak), leak.says());
    }
    text
}
