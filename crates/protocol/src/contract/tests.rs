use super::*;
use crate::transport::MemoryNetwork;
use crate::{Authority, Identity, IdentityFiles, JoinOptions, Joining, ProtocolError, SessionFile, Task};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use spnn_crypto::SecretRng;
use std::fs;
use std::path::Path;
use std::time::Duration;

const SESSION: &str = include_str!("../../../../examples/breast_cancer/session.toml");

/// An authority, and certificates of all roles of the example, in a directory.
pub(crate) struct Desk {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let desk = Self { directory: tempfile::tempdir().unwrap(), issuer };
        fs::write(desk.path("ca.pem"), desk.issuer.pem()).unwrap();
        for role in ROLES {
            desk.issue(role, role, &KeyPair::generate().unwrap(), 4000);
        }
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes `file.pem` and `file.key`: a certificate of `role`, in force until the beginning of `year`.
    fn issue(&self, file: &str, role: &str, key: &KeyPair, year: i32) {
        let mut params = CertificateParams::new([format!("{role}.spnn")]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.not_after = date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        let private = self.path(&format!("{file}.key"));
        fs::write(&private, key.serialize_pem()).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    pub(crate) fn identity(&self, file: &str) -> Identity {
        let path = |extension: &str| self.path(&format!("{file}.{extension}"));
        Identity::load(IdentityFiles::new(&path("pem"), &path("key"), &self.path("ca.pem"))).unwrap()
    }

    /// The section of a contract that nothing is wrong with.
    fn section(&self) -> String {
        let mut text = String::from(
            r#"
            [contract]
            purpose = "Tests"
            expires = "2030-06-30"
            outputs = ["label-holder"]
            accepted_leaks = ["server-learns-labels", "parties-learn-labels", "server-can-rebuild-features",
                "server-can-follow-records", "coordinator-learns-metrics", "collusion-of-server-and-all-other-parties"]
            label = "malignant"
            columns = { party-0 = ["a", "b"], party-1 = ["c"] }
            "#,
        );
        for role in ROLES {
            let key = self.identity(role).fingerprint();
            text += &format!(
                "[[contract.signatories]]\nrole = \"{role}\"\norganisation = \"House of {role}\"\nkey = \"{key}\"\n"
            );
        }
        text
    }

    fn session(&self) -> SessionConfig {
        config(&[SESSION, &self.section()].concat()).unwrap()
    }

    /// Signs as every role.
    fn sign(&self, session: &SessionConfig) {
        for role in ROLES {
            self.sign_as(session, role, role).unwrap();
        }
    }

    fn sign_as(&self, session: &SessionConfig, identity: &str, file: &str) -> Result<(), ContractError> {
        let signature = ContractSignature::sign(session, terms(session), &self.identity(identity), now())?;
        signature.write(&self.signature(file)).unwrap();
        Ok(())
    }

    fn signature(&self, role: &str) -> PathBuf {
        signature_file(self.directory.path(), role.parse().unwrap())
    }

    fn check(&self, session: &SessionConfig) -> Vec<Result<Signed, ContractError>> {
        let authority = Authority::load(&self.path("ca.pem")).unwrap();
        check_signed(session, terms(session), self.directory.path(), &authority, now())
    }

    /// What is wrong with the signatures, in words.
    fn wrong(&self, session: &SessionConfig) -> Vec<String> {
        self.check(session).into_iter().filter_map(Result::err).map(|e| e.to_string()).collect()
    }
}

const ROLES: [&str; 4] = ["coordinator", "server", "party-0", "party-1"];

fn config(text: &str) -> Result<SessionConfig, SessionError> {
    SessionFile::parse(text, Path::new("contract.toml"))?.config()
}

fn terms(session: &SessionConfig) -> &ContractTerms {
    session.contract.as_ref().unwrap()
}

fn time(text: &str) -> SystemTime {
    text.parse::<jiff::Timestamp>().unwrap().into()
}

fn now() -> SystemTime {
    time("2029-01-01T12:00:00.5Z")
}

#[test]
fn signatures_of_all_roles_are_good() {
    let desk = Desk::new();
    let session = desk.session();
    desk.sign(&session);
    let signed: Vec<Signed> = desk.check(&session).into_iter().map(Result::unwrap).collect();
    assert_eq!(signed.len(), 4);
    assert_eq!(signed[2].organisation, "House of party-0");
    assert_eq!(signed[2].signed_at, "2029-01-01T12:00:00Z");
    // A session without a contract is what it was before there were contracts.
    assert!(!config(SESSION).unwrap().canonical().contains("contract"));
}

#[test]
fn a_changed_value_voids_every_signature() {
    let desk = Desk::new();
    let text = [SESSION, &desk.section()].concat();
    desk.sign(&desk.session());
    for (from, to) in [
        ("epochs = 30", "epochs = 31"),
        ("purpose = \"Tests\"", "purpose = \"Testz\""),
        ("2030-06-30", "2030-06-29"),
        ("\"c\"]", "\"d\"]"),
        ("label = \"malignant\"\n            columns", "label = \"malignanz\"\n            columns"),
        ("House of server", "House of servers"),
        ("seed = 7", "seed = 8"),
        ("outputs =", "predictions_per_record_max = 5\noutputs ="),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let changed = config(&changed).unwrap();
        let wrong = desk.wrong(&changed);
        assert_eq!(wrong.len(), 4, "{to}: {wrong:?}");
        assert!(wrong[3].contains("party-1") && wrong[3].contains("another text"), "{}", wrong[3]);
    }
}

#[test]
fn a_contract_with_one_changed_byte_says_the_same_or_is_found() {
    let desk = Desk::new();
    let text = [SESSION, &desk.section()].concat();
    let session = desk.session();
    desk.sign(&session);
    let digest = session.digest();
    for at in text.find("[contract]").unwrap()..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        let Ok(changed) = String::from_utf8(bytes) else { continue };
        let Ok(changed) = config(&changed) else { continue };
        // White space and the case of hexadecimal digits say the same.
        assert!(changed.digest() != digest || changed == session, "byte {at}");
    }
}

#[test]
fn a_signature_with_one_changed_byte_says_the_same_or_is_found() {
    let desk = Desk::new();
    let session = desk.session();
    desk.sign(&session);
    let authority = Authority::load(&desk.path("ca.pem")).unwrap();
    let text = fs::read_to_string(desk.signature("party-0")).unwrap();
    let signature = ContractSignature::parse(&text).unwrap();
    let same = |other: &ContractSignature| other.verify(&session, terms(&session), &authority, now());
    let good = same(&signature).unwrap();
    let (mut found, mut harmless) = (0, 0);
    for at in 0..text.len() {
        for bit in [1, 4] {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= bit;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            match ContractSignature::parse(&changed).and_then(|changed| same(&changed)) {
                Err(_) => found += 1,
                Ok(signed) => {
                    assert_eq!(signed, good, "byte {at}");
                    harmless += 1;
                }
            }
        }
    }
    // Harmless are the comment on top, white space, and text around the certificate.
    assert!(found > 5 * harmless, "{found} found, {harmless} harmless");
    // A value that was changed is named with its file and role.
    fs::write(desk.signature("party-0"), text.replace("12:00:00Z", "12:00:01Z")).unwrap();
    let wrong = desk.wrong(&session);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].contains("party-0.sig") && wrong[0].contains("does not verify"), "{}", wrong[0]);
}

#[test]
fn only_the_key_of_the_contract_can_sign_for_a_role() {
    let desk = Desk::new();
    let session = desk.session();
    desk.sign(&session);
    // Another role's signature under this one's name.
    fs::copy(desk.signature("party-1"), desk.signature("party-0")).unwrap();
    let wrong = desk.wrong(&session);
    assert!(
        wrong.len() == 1 && wrong[0].contains("signature of party-0 is refused: it is that of party-1"),
        "{wrong:?}"
    );
    let text = fs::read_to_string(desk.signature("party-1")).unwrap();
    fs::write(desk.signature("party-0"), text.replace("role = \"party-1\"", "role = \"party-0\"")).unwrap();
    let wrong = desk.wrong(&session);
    assert!(wrong[0].contains("its certificate is that of party-1"), "{wrong:?}");
    // A second certificate of the same role, of the same authority, with another key.
    desk.issue("second", "party-0", &KeyPair::generate().unwrap(), 4000);
    let refused = desk.sign_as(&session, "second", "party-0").unwrap_err().to_string();
    assert!(refused.contains("contract.signatories: the key of party-0"), "{refused}");
    let other = config(&[SESSION, &desk.section()].concat().replace(
        &desk.identity("party-0").fingerprint().to_string(),
        &desk.identity("second").fingerprint().to_string(),
    ));
    desk.sign_as(&other.unwrap(), "second", "party-0").unwrap();
    assert!(desk.wrong(&session)[0].contains("another text"));
    fs::remove_file(desk.signature("party-0")).unwrap();
    let wrong = desk.wrong(&session);
    assert!(wrong[0].contains("party-0 (House of party-0) has not signed"), "{wrong:?}");
}

#[test]
fn a_renewed_certificate_with_the_same_key_keeps_its_signature() {
    let desk = Desk::new();
    let key = KeyPair::generate().unwrap();
    // In force when it signs, in 2029, and no longer when the signature is checked, in 2030.
    desk.issue("party-0", "party-0", &key, 2030);
    let session = desk.session();
    desk.sign(&session);
    let authority = Authority::load(&desk.path("ca.pem")).unwrap();
    let later = time("2030-03-01T00:00:00Z");
    let signed = check_signed(&session, terms(&session), desk.directory.path(), &authority, later);
    assert!(signed.iter().all(Result::is_ok), "{signed:?}");
    // One that was over before it signed.
    desk.issue("party-0", "party-0", &key, 2028);
    let refused = desk.sign_as(&session, "party-0", "party-0").unwrap_err().to_string();
    assert!(refused.contains("expired"), "{refused}");
    // One of another authority.
    let other = Desk::new();
    other.issue("party-0", "party-0", &key, 4000);
    let signature = ContractSignature::sign(&session, terms(&session), &other.identity("party-0"), now()).unwrap();
    let refused = signature.verify(&session, terms(&session), &authority, now()).unwrap_err();
    assert!(refused.contains("its certificate"), "{refused}");
    // One from tomorrow.
    let yesterday = time("2028-12-31T00:00:00Z");
    let signed = check_signed(&session, terms(&session), desk.directory.path(), &authority, yesterday);
    let refused = signed[3].as_ref().unwrap_err().to_string();
    assert!(refused.contains("in the future"), "{refused}");
}

#[test]
fn terms_that_make_no_sense_are_named() {
    let desk = Desk::new();
    let text = [SESSION, &desk.section()].concat();
    let key = |role: &str| desk.identity(role).fingerprint().to_string();
    let cases: [(&str, &str, &str); 17] = [
        ("purpose = \"Tests\"", "purpose = \" \"", "contract.purpose"),
        ("purpose = \"Tests\"", "purpose = \"\\u001b[2J\"", "contract.purpose"),
        ("\"2030-06-30\"", "\"30.6.2030\"", "no end of a contract"),
        ("outputs = [\"label-holder\"]", "outputs = []", "contract.outputs"),
        ("outputs = [\"label-holder\"]", "outputs = [\"server\"]", "label-holder"),
        ("label = \"malignant\"\n            c", "label = \"\"\n            c", "contract.label"),
        ("\"parties-learn-labels\", ", "", "needs \"parties-learn-labels\" accepted"),
        ("\"parties-learn-labels\"", "\"parties-learn-everything\"", "server-can-rebuild-features"),
        ("\"parties-learn-labels\"", "\"parties-learn-labels\", \"parties-learn-labels\"", "each name once"),
        ("\"parties-learn", "\"server-learns-each-product\", \"parties-learn", "does not have"),
        (", party-1 = [\"c\"]", "", "contract.columns"),
        ("party-1 = [\"c\"]", "party-1 = [\"c\", \"c\"]", "each column of party-1 once"),
        ("party-1 = [\"c\"]", "party-1 = [\"c\"], server = []", "contract.columns"),
        ("role = \"party-1\"", "role = \"party-0\"", "contract.signatories"),
        ("House of party-1", "", "organisations"),
        (&key("party-1"), &key("party-0"), "a key of its own"),
        ("outputs =", "predictions_per_record_max = 0\noutputs =", "contract.predictions_per_record_max"),
    ];
    for (from, to, named) in cases {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let error = config(&changed).unwrap_err().to_string();
        assert!(error.contains(named), "{to}: {error}");
    }
    let many: String = (0..5000).map(|i| format!("\"a_long_name_of_column_{i}\",")).collect();
    let error = config(&text.replace("\"c\"]", &format!("{many}]"))).unwrap_err().to_string();
    assert!(error.contains("at most 61440 bytes"), "{error}");
}

#[test]
fn each_first_layer_has_its_own_leaks() {
    let desk = Desk::new();
    let text = [SESSION, &desk.section()].concat();
    let collusion = "\"collusion-of-server-and-all-other-parties\"";
    for (kind, leaks) in [
        ("sharing", collusion.to_owned()),
        ("paillier", collusion.to_owned()),
        ("beaver", format!("{collusion}, \"collusion-of-dealer-and-any-party\"")),
        ("plain", "\"server-learns-each-product\"".to_owned()),
    ] {
        let with = |leaks: &str| {
            let text = text.replace("first_layer = \"sharing\"", &format!("first_layer = \"{kind}\""));
            config(&text.replace(collusion, leaks))
        };
        with(&leaks).unwrap();
        let error = with("").unwrap_err().to_string();
        assert!(error.contains(kind) && error.contains("accepted_leaks"), "{kind}: {error}");
    }
}

#[test]
fn two_contracts_differ_by_name() {
    let desk = Desk::new();
    let ours = desk.session();
    let text = [SESSION, &desk.section()].concat();
    for (from, to, field) in [
        ("\"2030-06-30\"", "\"2030-06-29\"", "contract.expires"),
        ("\"c\"]", "\"d\"]", "contract.columns.party-1.0"),
        ("House of server", "House of Usher", "contract.signatories.1.organisation"),
        ("outputs =", "predictions_per_record_max = 5\noutputs =", "contract.predictions_per_record_max"),
    ] {
        let theirs = config(&text.replacen(from, to, 1)).unwrap();
        assert_eq!(ours.difference(&theirs.canonical()).unwrap().field, field);
        assert_eq!(theirs.difference(&ours.canonical()).unwrap().field, field);
    }
    // Against a peer without the contract, the whole section is what differs.
    let without = config(SESSION).unwrap();
    assert_eq!(without.difference(&ours.canonical()).unwrap().field, "contract");
    assert_eq!(ours.difference(&without.canonical()).unwrap().field, "contract");
    assert_eq!(serde_json::from_str::<SessionConfig>(&ours.canonical()).unwrap(), ours);
}

#[test]
fn columns_label_and_releases_are_checked_against_the_terms() {
    let desk = Desk::new();
    let session = desk.session();
    let terms = terms(&session);
    let columns = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    terms.check_columns(Role::party(0), &columns(&["b", "a"])).unwrap();
    let error = terms.check_columns(Role::party(0), &columns(&["a", "z"])).unwrap_err().to_string();
    assert!(error.contains("contract.columns.party-0"), "{error}");
    assert!(error.contains("does not name: z") && error.contains("names: b"), "{error}");
    terms.check_label(Some("malignant")).unwrap();
    assert!(terms.check_label(None).unwrap_err().to_string().contains("has none"));
    terms.check_release(u32::MAX).unwrap();
    let limited = ContractTerms { predictions_per_record_max: Some(2), ..terms.clone() };
    limited.check_release(1).unwrap();
    assert!(limited.check_release(2).unwrap_err().to_string().contains("predictions_per_record_max = 2"));
}

#[tokio::test]
async fn nobody_joins_when_the_contract_is_over() {
    let desk = Desk::new();
    let session = desk.session();
    let network = MemoryNetwork::new(64, Duration::from_secs(1), &mut SecretRng::from_system().unwrap());
    let options = JoinOptions {
        clock: || time("2030-07-01T00:00:00Z"),
        ..JoinOptions::new(Task::Train, desk.directory.path().to_owned())
    };
    let mut transport = network.transport(Role::Server);
    let refused = Joining::connect(&mut transport, &session, &options, Duration::from_secs(1)).await.err();
    let refused = refused.expect("a contract that is over");
    assert!(matches!(refused, ProtocolError::Contract(ContractError::Expired { .. })), "{refused}");
    let shown = refused.to_string();
    assert!(shown.contains("2030-06-30") && shown.contains("2030-07-01"), "{shown}");
}

#[test]
fn the_document_explains_every_leak() {
    let document = include_str!("../../../../docs/contract.md");
    for leak in Leak::ALL {
        let row = format!("| `{leak}` |");
        assert!(document.contains(&row), "docs/contract.md has no row {row}");
    }
    assert_eq!(document.matches("\n| `").count(), Leak::ALL.len(), "a row of no leak");
}
