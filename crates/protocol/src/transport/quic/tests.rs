use super::*;
use crate::message::Finish;
use crate::{IdentityFiles, Step};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// An authority, and a directory with what it issues.
struct Pki {
    directory: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

const FAR: i32 = 4000;
const LIMIT: Duration = Duration::from_secs(10);

impl Pki {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
        Self { directory, authority }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes key and certificate of a role, good up to the end of a year.
    fn issue(&self, role: Role, year: i32) -> IdentityFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([role.certificate_name()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.not_after = date_time_ymd(year, 12, 31);
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let (pem, private) = (self.path(&format!("{role}.pem")), self.path(&format!("{role}.key")));
        std::fs::write(&pem, certificate.pem()).unwrap();
        std::fs::write(&private, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).unwrap();
        IdentityFiles::new(&pem, &private, &self.path("ca.pem"))
    }
}

fn options() -> QuicOptions {
    QuicOptions {
        listen: None,
        dial: BTreeMap::new(),
        expect: Vec::new(),
        pins: BTreeMap::new(),
        peer_timeout: LIMIT,
        tuning: TransportTuning::default(),
    }
}

/// A coordinator that expects party 0.
fn coordinator(identity: Identity) -> QuicTransport {
    let listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    QuicTransport::new(identity, QuicOptions { listen, expect: vec![Role::party(0)], ..options() }).unwrap()
}

/// A party that dials it, and pins the key it has to have.
fn party(identity: Identity, coordinator: &QuicTransport, pin: Option<Fingerprint>) -> QuicTransport {
    let address = coordinator.local_address().unwrap().to_string();
    let dial = BTreeMap::from([(Role::Coordinator, address)]);
    let pins = pin.into_iter().map(|pin| (Role::Coordinator, pin)).collect();
    QuicTransport::new(identity, QuicOptions { dial, pins, ..options() }).unwrap()
}

async fn connect(transport: &mut QuicTransport) -> Result<Channel, String> {
    transport.connect(Role::Coordinator, LIMIT).await.map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_named_with_its_owner_on_either_side() {
    let pki = Pki::new();
    let expired = |role| {
        let files = pki.issue(role, 2001);
        assert!(Identity::load(files.clone()).unwrap_err().to_string().contains("expired on"));
        Identity::read(files, None).unwrap()
    };
    let good = |role| Identity::load(pki.issue(role, FAR)).unwrap();

    let listening = coordinator(expired(Role::Coordinator));
    let error = connect(&mut party(good(Role::party(0)), &listening, None)).await.err().unwrap();
    assert!(error.contains("coordinator") && error.contains("expired"), "{error}");

    let listening = coordinator(good(Role::Coordinator));
    let error = connect(&mut party(expired(Role::party(0)), &listening, None)).await.err().unwrap();
    assert!(error.contains("coordinator refused this role's certificate") && error.contains("expired"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_have_the_certificate_on_disk_and_old_ones_live_on() {
    let pki = Pki::new();
    let first = Identity::load(pki.issue(Role::Coordinator, FAR)).unwrap();
    let before = first.fingerprint();
    let mut listening = coordinator(first);
    let own = Identity::load(pki.issue(Role::party(0), FAR)).unwrap();
    let mut old = party(own.clone(), &listening, Some(before));
    let mut here = connect(&mut old).await.unwrap();
    let mut there = listening.connect(Role::party(0), LIMIT).await.unwrap();

    let files = pki.issue(Role::Coordinator, FAR);
    let after = Identity::load(files.clone()).unwrap().fingerprint();
    assert_ne!(before, after);
    listening.certificate().reload();
    // Damaged files change nothing, and neither do those of another role.
    std::fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\n").unwrap();
    listening.certificate().reload();
    std::fs::copy(pki.path("party-0.pem"), &files.certificate).unwrap();
    std::fs::copy(pki.path("party-0.key"), &files.key).unwrap();
    listening.certificate().reload();

    let mut new = party(own.clone(), &listening, Some(after));
    // The channel that was there before carries messages both ways.
    here.send(Step::SETUP, &Finish).await.unwrap();
    let Finish = there.recv(Step::SETUP).await.unwrap();
    there.send(Step::SETUP, &Finish).await.unwrap();
    let Finish = here.recv(Step::SETUP).await.unwrap();
    old.end(Ending { cause: crate::Cause::Done, culprit: Role::party(0) });
    old.wait_closed(LIMIT).await;
    connect(&mut new).await.unwrap();
    new.end(Ending { cause: crate::Cause::Done, culprit: Role::party(0) });
    new.wait_closed(LIMIT).await;
    let error = connect(&mut party(own, &listening, Some(before))).await.err().unwrap();
    assert!(error.contains(&after.to_string()) && error.contains(&before.to_string()), "{error}");
}
