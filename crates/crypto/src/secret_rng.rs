//! Secret randomness.

use rand::{SeedableRng, TryRng, rngs::SysRng};
use std::fmt;
use thiserror::Error;

/// The operating system gave no randomness.
#[derive(Clone, Debug, Error)]
#[error("the operating system's random generator failed: {0}")]
pub struct SystemRandomnessError(String);

/// Secret randomness of one role: a cryptographic generator seeded by the operating system and passed as an argument.
///
/// It is the only source for secrets. Public draws (schedule, initial weights) have their own, seeded by the session.
pub struct SecretRng(rand::rngs::StdRng);

impl SecretRng {
    /// Seeds a generator from the operating system.
    ///
    /// # Errors
    /// [`SystemRandomnessError`] if the system has none to give.
    pub fn from_system() -> Result<Self, SystemRandomnessError> {
        let mut seed = zeroize::Zeroizing::new([0_u8; 32]);
        SysRng.try_fill_bytes(seed.as_mut()).map_err(|e| SystemRandomnessError(e.to_string()))?;
        Ok(Self(rand::rngs::StdRng::from_seed(*seed)))
    }

    /// 32 fresh secret bytes.
    pub fn bytes32(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        rand::Rng::fill_bytes(&mut self.0, &mut bytes);
        bytes
    }

    /// Fills `bytes` with fresh secret bytes.
    pub fn fill_bytes(&mut self, bytes: &mut [u8]) {
        rand::Rng::fill_bytes(&mut self.0, bytes);
    }

    /// The generator itself, for libraries that draw by themselves.
    pub(crate) fn generator(&mut self) -> &mut rand::rngs::StdRng {
        &mut self.0
    }
}

impl fmt::Debug for SecretRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretRng(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ_and_are_not_shown() {
        let mut rng = SecretRng::from_system().unwrap();
        assert_ne!(rng.bytes32(), rng.bytes32());
        assert_ne!(SecretRng::from_system().unwrap().bytes32(), rng.bytes32());
        assert_eq!(format!("{rng:?}"), "SecretRng(..)");
    }
}
