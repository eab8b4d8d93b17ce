use super::*;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.into())).unwrap()
}

fn write(file: &Path, bytes: &[u8]) {
    std::fs::write(file, bytes).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A fresh key, and its encrypted form.
fn encrypted(under: &str) -> (Vec<u8>, Zeroizing<String>) {
    let der = rcgen::KeyPair::generate().unwrap().serialize_der();
    let pem = encrypt_key(&der, &passphrase(under), &mut SecretRng::from_system().unwrap()).unwrap();
    (der, pem)
}

fn decrypt(file: &Path, under: Option<&str>) -> Result<Vec<u8>, String> {
    let key = KeyFile::read(file).and_then(|k| k.decrypt(file, under.map(passphrase).as_ref()));
    key.map(|k| k.secret_der().to_vec()).map_err(|e| e.to_string())
}

/// Runs `openssl pkcs8`; nothing where there is no openssl.
fn openssl(args: &[&str], directory: &Path) -> Option<bool> {
    let mut command = Command::new("openssl");
    command.arg("pkcs8").args(args).current_dir(directory).stdin(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) => Some(status.success()),
        Err(e) => {
            eprintln!("skipped: openssl: {e}");
            None
        }
    }
}

#[test]
fn what_was_encrypted_is_decrypted_by_its_passphrase_only() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.key");
    let (der, pem) = encrypted("päss phrase");
    write(&file, pem.as_bytes());
    assert!(KeyFile::read(&file).unwrap().is_encrypted());
    assert_eq!(decrypt(&file, Some("päss phrase")).unwrap(), der);
    let error = decrypt(&file, Some("pass phrase")).unwrap_err();
    assert!(error.contains("a.key") && error.contains("passphrase is not that"), "{error}");
    let error = decrypt(&file, None).unwrap_err();
    assert!(error.contains("passphrase_file") && error.contains("SPNN_PASSPHRASE"), "{error}");
    // Salt and initialisation vector are fresh.
    let again = encrypt_key(&der, &passphrase("päss phrase"), &mut SecretRng::from_system().unwrap()).unwrap();
    assert_ne!(*again, *pem);
}

#[test]
fn openssl_reads_what_is_written_here() {
    let directory = tempfile::tempdir().unwrap();
    let (der, pem) = encrypted("open sesame");
    write(&directory.path().join("ours.key"), pem.as_bytes());
    let args =
        ["-in", "ours.key", "-passin", "pass:open sesame", "-outform", "DER", "-topk8", "-nocrypt", "-out", "der"];
    let Some(read) = openssl(&args, directory.path()) else { return };
    assert!(read, "openssl cannot read it");
    // OpenSSL may leave out the public key that PKCS #8 allows: what counts is that the key is the same.
    let theirs = std::fs::read(directory.path().join("der")).unwrap();
    let public = |der: &[u8]| {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der.to_vec()));
        rcgen::PublicKeyData::subject_public_key_info(&rcgen::KeyPair::try_from(&key).unwrap())
    };
    assert_eq!(public(&theirs), public(&der));
}

#[test]
fn what_openssl_writes_is_read_here() {
    let directory = tempfile::tempdir().unwrap();
    let der = rcgen::KeyPair::generate().unwrap().serialize_der();
    write(&directory.path().join("der"), &der);
    // Its defaults, PBKDF2 with 2,048 iterations; scrypt with its defaults, and a weak one.
    let ways: [&[&str]; 4] = [&[], &["-scrypt"], &["-scrypt", "-scrypt_N", "16"], &["-v2prf", "hmacWithSHA512"]];
    for way in ways {
        let args = ["-topk8", "-inform", "DER", "-in", "der", "-passout", "pass:theirs", "-out", "theirs.key"];
        let Some(written) = openssl(&[&args, way].concat(), directory.path()) else { return };
        assert!(written, "openssl cannot write it: {way:?}");
        let file = directory.path().join("theirs.key");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!decrypt(&file, Some("theirs")).unwrap().is_empty(), "{way:?}");
        assert!(decrypt(&file, Some("ours")).is_err(), "{way:?}");
    }
}

#[test]
fn a_cost_that_is_meant_to_stop_us_is_refused_at_once() {
    let scrypt = |n: u64, r: u16, p: u16| {
        let salt = pkcs8::pkcs5::pbes2::Salt::new([0; 16]).unwrap();
        let parameters = ScryptParams { salt, cost_parameter: n, block_size: r, parallelization: p, key_length: None };
        check_cost(&Kdf::Scrypt(parameters))
    };
    for (n, r, p) in [(16, 8, 1), (1 << 14, 8, 1), (1 << 17, 8, 1), (1 << 20, 8, 1), (1 << 15, 8, 16)] {
        assert_eq!(scrypt(n, r, p), Ok(()), "{n} {r} {p}");
    }
    for (n, r, p) in [
        (0, 8, 1),
        (1, 8, 1),
        (3 << 10, 8, 1),
        (1 << 14, 0, 1),
        (1 << 14, 8, 0),
        (1 << 21, 8, 1),
        (1 << 63, 1, 1),
        (2, u16::MAX, u16::MAX),
        (1 << 17, 8, 17),
    ] {
        assert!(scrypt(n, r, p).is_err(), "{n} {r} {p}");
    }
    let salt = [0; 16];
    let iterations = |count| {
        let parameters = Pbkdf2Params::hmac_sha256(count, &salt).unwrap();
        check_cost(&Kdf::Pbkdf2(parameters))
    };
    assert_eq!(iterations(2048), Ok(()));
    assert!(iterations(10_000_001).is_err());
}

#[test]
fn a_file_that_is_no_key_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.key");
    let (_, pem) = encrypted("x");
    let damaged = pem.replacen('\n', "\nAAAA", 1);
    for (text, word) in [
        ("", "a.key"),
        ("\u{0}\u{1}", "a.key"),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "a.key"),
        (damaged.as_str(), "a.key"),
        ("-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", "openssl pkcs8 -topk8"),
    ] {
        write(&file, text.as_bytes());
        let error = decrypt(&file, Some("x")).unwrap_err();
        assert!(error.contains(word), "{text:?}: {error}");
    }
    write(&file, &vec![b'a'; FILE_BYTES_MAX + 1]);
    assert!(decrypt(&file, None).unwrap_err().contains("longer than"));
}

#[test]
fn a_passphrase_file_holds_one_line_for_its_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passphrase");
    for (text, expected) in [("a b", "a b"), ("a b\n", "a b"), ("a b\r\n", "a b"), ("a b\nrest\n", "a b")] {
        write(&file, text.as_bytes());
        assert!(Passphrase::read(&file).unwrap() == passphrase(expected), "{text:?}");
    }
    write(&file, b"\n");
    assert!(Passphrase::read(&file).unwrap_err().to_string().contains("empty"));
    write(&file, &[b'a'; 1025]);
    assert!(Passphrase::read(&file).is_err());
    write(&file, b"secret");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = Passphrase::read(&file).unwrap_err().to_string();
    assert!(error.contains("mode 640") && error.contains("passphrase"), "{error}");
    assert!(!format!("{:?}", passphrase("secret")).contains("secret"));
}
