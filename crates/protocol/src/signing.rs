//! Signatures with the key of a role's certificate.

use crate::Role;
use crate::identity::{Fingerprint, Identity, provider, role_and_fingerprint};
use base16ct::lower::encode_string as hex;
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use webpki::EndEntityCert;

/// A signature and the certificate that it is by, as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    algorithm: Algorithm,
    /// Lower-case hexadecimal.
    signature: String,
    /// The signer's certificate chain, PEM.
    certificate: String,
}

/// Who made a [`Seal`], by its certificate. Whether that comes from an authority is another question.
pub(crate) struct Signer {
    pub(crate) role: Role,
    pub(crate) key: Fingerprint,
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// How certificate keys sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Algorithm {
    EcdsaP256Sha256,
    EcdsaP384Sha384,
    Ed25519,
    RsaPssSha256,
}

impl Algorithm {
    const ALL: [Self; 4] = [Self::EcdsaP256Sha256, Self::EcdsaP384Sha384, Self::Ed25519, Self::RsaPssSha256];

    fn scheme(self) -> SignatureScheme {
        match self {
            Self::EcdsaP256Sha256 => SignatureScheme::ECDSA_NISTP256_SHA256,
            Self::EcdsaP384Sha384 => SignatureScheme::ECDSA_NISTP384_SHA384,
            Self::Ed25519 => SignatureScheme::ED25519,
            Self::RsaPssSha256 => SignatureScheme::RSA_PSS_SHA256,
        }
    }
}

impl Seal {
    /// Signs `message`, which says in its first bytes what it is: the same keys sign for TLS.
    pub(crate) fn make(identity: &Identity, message: &[u8]) -> Result<Self, String> {
        let certificate = to_pem(identity.chain());
        let message = with_certificate(message, &certificate);
        let (scheme, signature) = identity.sign(&Algorithm::ALL.map(Algorithm::scheme), &message)?;
        let algorithm = Algorithm::ALL.into_iter().find(|a| a.scheme() == scheme);
        Ok(Self {
            algorithm: algorithm.ok_or_else(|| format!("keys that sign by {scheme:?} are not supported"))?,
            signature: hex(&signature),
            certificate,
        })
    }

    /// Who signed `message`.
    pub(crate) fn check(&self, message: &[u8]) -> Result<Signer, String> {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| "its certificate is no PEM".to_owned())?;
        let leaf = chain.first().ok_or("it holds no certificate")?;
        let (role, key) = role_and_fingerprint(leaf)?;
        // Nothing but the chain: text beside it would be covered by nobody's signature.
        let certificate = to_pem(&chain);
        if !certificate.lines().eq(self.certificate.lines()) {
            return Err("its certificate is not written as this program writes it".into());
        }
        let message = with_certificate(message, &certificate);
        let signature =
            base16ct::lower::decode_vec(&self.signature).map_err(|_| "its value is not lower-case hexadecimal")?;
        let parsed = EndEntityCert::try_from(leaf).map_err(|e| e.to_string())?;
        let schemes = provider().signature_verification_algorithms.mapping;
        let with = schemes.iter().filter(|(scheme, _)| *scheme == self.algorithm.scheme()).flat_map(|(_, all)| *all);
        let mut with = with.map(|algorithm| parsed.verify_signature(*algorithm, &message, &signature));
        if !with.any(|verified| verified.is_ok()) {
            return Err("its value does not verify: what is signed, or the value, was changed".into());
        }
        Ok(Signer { role, key, chain })
    }
}

/// The signer answers for the certificate that it shows, too: not every reader has the authority at hand.
fn with_certificate(message: &[u8], certificate: &str) -> Vec<u8> {
    [message, b"\0", &Sha256::digest(certificate)].concat()
}

fn to_pem(chain: &[CertificateDer<'_>]) -> String {
    let chain: Vec<pem::Pem> = chain.iter().map(|c| pem::Pem::new("CERTIFICATE", c.as_ref())).collect();
    pem::encode_many_config(&chain, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}
