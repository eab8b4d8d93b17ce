//! SPNN-HE: aggregation under the server's Paillier key, along a chain of parties.
//!
//! Set-up, once a session:
//!
//! 1. The server makes a key pair and sends every party the public key and a proof that it is sound.
//! 2. Each party checks key and proof, draws its own `x`, makes its table of powers, and begins to fill a pool of
//!    randomizers in a thread of its own.
//!
//! Every step, in parts of 64 ciphertexts, so that a part travels while the next one is made:
//!
//! 3. Party i computes `X_i·W_i`, encodes it in fixed point and packs many values into each plaintext.
//! 4. It adds its pairwise masks to the packed plaintexts, uniform in Z_n and cancelling modulo n in the sum.
//! 5. It encrypts them with fresh randomizers. The first party sends them to the second; every other one multiplies them
//!    into what it received and sends that on; the last one sends to the server.
//! 6. The server decrypts: the masks have cancelled, and the sum is **opened**, to the server only.
//!
//! Private input of party i: `X_i`, `W_i`. Output, to the server: `H1 = Σ X_i·W_i`, off by at most `k·2^−(f+1)` and its
//! rounding to `f32`. A party sees ciphertexts only, fresh at every hop. The server alone can decrypt, and every party's
//! ciphertexts but the last sum reach only the next party, inside the two parties' own TLS; were the server to get one
//! from a party in league with it, it would find the sum so far under masks of the parties still to come. So k − 1
//! parties have to collude with it, as in `sharing`.
//!
//! Per value: `2·key_bits/8 / slots` bytes on every hop, with `slots = ⌊(key_bits − 1)/(value_bits + ⌈log2 k⌉)⌋`; one
//! short exponentiation (ahead) and one modular product (at once) at a party, one CRT decryption at the server, each
//! divided by `slots`.
//!
//! Source: arXiv 2012.09364, SPNN-HE; the masks inside are an addition here.

use super::plain::multiply;
use super::{MaskSteps, PartySide, ServerSide, pair_keys};
use crate::contract::Leak;
use crate::error::{out_of_bound, own_value};
use crate::message::HEADER_BYTES;
use crate::{Network, ProtocolError, Role, SessionConfig, SessionError, Step};
use async_trait::async_trait;
use ndarray::{Array2, ArrayView2, s};
use serde::{Deserialize, Serialize};
use spnn_crypto::paillier::{
    Ciphertexts, Exponent, KeyBits, KeyProof, Lookup, Packing, PaillierError, PublicKey, RandomizerTable, Randomizers,
    SecretKey,
};
use spnn_crypto::{EncodeError, FixedPoint, FixedPointError, PairKey, SecretRng, Sign};
use std::sync::mpsc;
use zeroize::Zeroizing;

/// What it does not prevent, besides what no first layer does.
pub(super) const LEAKS: &[Leak] = &[Leak::CollusionOfServerAndAllOtherParties];

/// Ciphertexts of a part: eight groups of the eight that are computed side by side.
const PART: usize = 64;

/// Key, packing and randomness of `paillier`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PaillierSpec {
    /// 3072 (default, 128-bit security), or 2048 (112-bit) if `allow_112_bit` says so.
    pub key_bits: u32,
    /// Accept the 2048-bit key.
    pub allow_112_bit: bool,
    /// Bits of a packed value; fewer put more values into a ciphertext.
    pub value_bits: u32,
    /// Bits after the point.
    pub fraction_bits: u32,
    /// Largest magnitude of an opened value.
    pub h1_bound: f64,
    /// `half` (default): randomness of half the key's length, as Damgård, Jurik and Nielsen propose. `full`: twice the
    /// work, one assumption less.
    pub exponent: ExponentSpec,
    /// `constant-time` (default), or `direct`: 1.7 times faster, for a machine on which nothing else runs that could
    /// watch its cache.
    pub lookup: LookupSpec,
}

/// Length of the random exponents of `paillier`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExponentSpec {
    /// Half the key's length.
    #[default]
    Half,
    /// The key's length.
    Full,
}

/// How tables of powers are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LookupSpec {
    /// All of a table's rows, so that the cache tells nothing.
    #[default]
    ConstantTime,
    /// The row that is wanted.
    Direct,
}

impl From<ExponentSpec> for Exponent {
    fn from(spec: ExponentSpec) -> Self {
        match spec {
            ExponentSpec::Half => Self::Short,
            ExponentSpec::Full => Self::Full,
        }
    }
}

impl From<LookupSpec> for Lookup {
    fn from(spec: LookupSpec) -> Self {
        match spec {
            LookupSpec::ConstantTime => Self::ConstantTime,
            LookupSpec::Direct => Self::DirectOnOwnMachine,
        }
    }
}

impl Default for PaillierSpec {
    fn default() -> Self {
        Self {
            key_bits: 3072,
            allow_112_bit: false,
            value_bits: 48,
            fraction_bits: 24,
            h1_bound: f64::from(1 << 20),
            exponent: ExponentSpec::Half,
            lookup: LookupSpec::ConstantTime,
        }
    }
}

impl PaillierSpec {
    /// The fixed-point format for `parties` addends.
    ///
    /// # Errors
    /// [`FixedPointError`] if the format cannot work.
    pub fn fixed_point(&self, parties: u16) -> Result<FixedPoint, FixedPointError> {
        FixedPoint::new(self.value_bits, self.fraction_bits, u32::from(parties), self.h1_bound)
    }

    /// The size of the server's key.
    ///
    /// # Errors
    /// [`SessionError::Value`] for a size that is not offered, or not allowed by the session.
    pub fn bits(&self) -> Result<KeyBits, SessionError> {
        #[cfg(test)]
        if self.key_bits == 512 {
            return Ok(KeyBits::InsecureTest512);
        }
        let bits = KeyBits::try_from(self.key_bits).ok();
        bits.filter(|&bits| bits == KeyBits::Bits3072 || self.allow_112_bit).ok_or_else(|| SessionError::Value {
            field: "paillier.key_bits",
            expected: "3072, or 2048 together with allow_112_bit = true".into(),
            found: self.key_bits.to_string(),
        })
    }

    /// How values lie in a plaintext, for `parties` addends.
    ///
    /// # Errors
    /// [`SessionError::Value`] for a key size or a number of bits that cannot be.
    pub fn packing(&self, parties: u16) -> Result<Packing, SessionError> {
        Packing::new(self.bits()?, self.value_bits, u32::from(parties)).map_err(|e| SessionError::Value {
            field: "paillier.value_bits",
            expected: e.to_string(),
            found: self.value_bits.to_string(),
        })
    }
}

/// What both sides need of the session.
#[derive(Clone, Copy)]
struct Format {
    fixed_point: FixedPoint,
    packing: Packing,
    parties: u16,
    width: usize,
    threads: usize,
}

impl Format {
    fn new(session: &SessionConfig) -> Result<Self, ProtocolError> {
        let spec = &session.paillier;
        Ok(Self {
            fixed_point: spec.fixed_point(session.parties)?,
            packing: spec.packing(session.parties)?,
            parties: session.parties,
            width: session.model.hidden_width as usize,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }

    /// The parts of a tensor of `values` values: number of each, and its range of values.
    fn parts(self, values: usize) -> impl Iterator<Item = (u32, std::ops::Range<usize>)> {
        let size = PART * self.packing.slots();
        (0..).zip((0..values).step_by(size)).map(move |(part, start)| (part, start..values.min(start + size)))
    }
}

/// Bytes that each party sends in a step of `rows` rows, headers included; 0 for a session that cannot be.
#[must_use]
pub fn step_bytes(session: &SessionConfig, rows: u64) -> u64 {
    let values = rows * u64::from(session.model.hidden_width);
    let (Ok(bits), Ok(packing)) = (session.paillier.bits(), session.paillier.packing(session.parties)) else {
        return 0;
    };
    let ciphertexts = values.div_ceil(packing.slots() as u64);
    ciphertexts * bits.ciphertext_bytes() as u64 + ciphertexts.div_ceil(PART as u64) * HEADER_BYTES as u64
}

/// A party's side.
pub struct Party {
    format: Format,
    me: Role,
    masks: MaskSteps,
    keys: Vec<(Sign, PairKey)>,
    public: PublicKey,
    pool: Pool,
    /// Who is before this party in the chain.
    before: Option<Role>,
    /// Who is after it: the next party, or the server.
    after: Role,
    product: Array2<f32>,
    encoded: Zeroizing<Vec<u64>>,
}

impl Party {
    /// Set-up of a party, steps 1 and 2.
    ///
    /// # Errors
    /// [`ProtocolError::PaillierKey`] if the server's key or proof is not sound; as [`Network::recv_payload`].
    pub async fn set_up(
        session: &SessionConfig,
        incarnation: u64,
        network: &mut Network,
    ) -> Result<Self, ProtocolError> {
        let format = Format::new(session)?;
        let me = network.me();
        let bits = session.paillier.bits()?;
        let mut key = vec![0; bits.key_bytes()];
        network.recv_payload(Role::Server, Step::SETUP, 0, &mut key).await?;
        let mut proof = vec![0; KeyProof::byte_len(bits)];
        network.recv_payload(Role::Server, Step::SETUP, 1, &mut proof).await?;
        let public = PublicKey::from_bytes(bits, &key)
            .map_err(|source| ProtocolError::PaillierKey { peer: Role::Server, source })?;
        KeyProof::from_bytes(bits, &proof)
            .and_then(|proof| proof.verify(&public, &proof_context(session, incarnation)))
            .map_err(|source| ProtocolError::PaillierProof { peer: Role::Server, source })?;

        let parties: Vec<Role> = session.party_roles().collect();
        let place = parties.iter().position(|&p| p == me).unwrap_or(0);
        let (lookup, exponent) = (session.paillier.lookup.into(), session.paillier.exponent.into());
        let mut rng = SecretRng::from_system()?;
        let table = RandomizerTable::new(&public, lookup, exponent, &mut rng);
        let values = session.train.batch_size as usize * format.width;
        let parts = format.packing.plaintexts_for(values).div_ceil(PART);
        Ok(Self {
            format,
            me,
            masks: MaskSteps::new(session, incarnation),
            keys: pair_keys(session, network)?,
            pool: Pool::start(&public, table, rng, parts),
            public,
            before: place.checked_sub(1).map(|i| parties[i]),
            after: parties.get(place + 1).copied().unwrap_or(Role::Server),
            product: Array2::zeros((0, format.width)),
            encoded: Zeroizing::default(),
        })
    }

    /// Step 3 to 5 for one part: this party's own contribution, masked and encrypted.
    fn encrypt(&mut self, step: Step, part: u32, values: std::ops::Range<usize>) -> Result<Ciphertexts, ProtocolError> {
        let Format { packing, width, threads, .. } = self.format;
        let start = values.start;
        let values: Vec<i64> = self.encoded[values].iter().map(|v| v.cast_signed()).collect();
        let values = Zeroizing::new(values);
        let failed = |source| match source {
            PaillierError::Value { position } => own_value(step, width, EncodeError { position: start + position }),
            source => ProtocolError::Paillier { peer: self.me, step, source },
        };
        let mut plaintexts = packing.encode(&self.public, &values).map_err(failed)?;
        let context = self.masks.context(step);
        for (sign, key) in &self.keys {
            plaintexts.mask(key, &context, *sign, u64::from(part) * PART as u64);
        }
        let randomizers = self.pool.take(plaintexts.len()).map_err(failed)?;
        Ciphertexts::encrypt(&plaintexts, randomizers, threads).map_err(failed)
    }
}

#[async_trait]
impl PartySide for Party {
    fn prepare(&mut self, _step: Step, _rows: &[u32]) {
        // The pool fills itself.
    }

    async fn forward(
        &mut self,
        network: &mut Network,
        step: Step,
        _rows: &[u32],
        x: ArrayView2<'_, f32>,
        w: ArrayView2<'_, f32>,
    ) -> Result<(), ProtocolError> {
        self.masks.use_once(step)?;
        let Format { fixed_point, width, threads, .. } = self.format;
        let values = x.nrows() * width;
        self.encoded.clear();
        self.encoded.resize(values, 0);
        let product = multiply(&mut self.product, x, w);
        fixed_point.encode_onto(product, &mut self.encoded).map_err(|e| own_value(step, width, e))?;

        let mut bytes = Vec::new();
        for (part, range) in self.format.parts(values) {
            let own = self.encrypt(step, part, range)?;
            let sum = match self.before {
                None => own,
                Some(peer) => {
                    let failed = |source| ProtocolError::Paillier { peer, step, source };
                    bytes.resize(own.len() * self.public.bits().ciphertext_bytes(), 0);
                    network.recv_payload(peer, step, part, &mut bytes).await?;
                    let mut sum = Ciphertexts::from_bytes(&self.public, own.len(), &bytes).map_err(failed)?;
                    sum.add_assign(&own, threads).map_err(failed)?;
                    sum
                }
            };
            network.send_payload(self.after, step, part, &sum.to_bytes()).await?;
        }
        Ok(())
    }
}

/// The server's side.
pub struct Server {
    format: Format,
    key: SecretKey,
    /// The party that forwards the sum.
    last: Role,
    sums: Zeroizing<Vec<u64>>,
    h1: Array2<f32>,
}

impl Server {
    /// Set-up of the server, step 1.
    ///
    /// # Errors
    /// [`ProtocolError`] if no key can be made or a party is gone.
    pub async fn set_up(
        session: &SessionConfig,
        incarnation: u64,
        network: &mut Network,
    ) -> Result<Self, ProtocolError> {
        let format = Format::new(session)?;
        let mut rng = SecretRng::from_system()?;
        let key = SecretKey::generate(session.paillier.bits()?, &mut rng)
            .map_err(|source| ProtocolError::PaillierKey { peer: Role::Server, source })?;
        let proof = KeyProof::new(&key, &proof_context(session, incarnation), &mut rng);
        network.send_payload_to_parties(Step::SETUP, 0, &key.public().to_bytes()).await?;
        network.send_payload_to_parties(Step::SETUP, 1, &proof.to_bytes()).await?;
        Ok(Self {
            format,
            key,
            last: Role::party(session.parties - 1),
            sums: Zeroizing::default(),
            h1: Array2::zeros((0, format.width)),
        })
    }
}

#[async_trait]
impl ServerSide for Server {
    async fn open(
        &mut self,
        network: &mut Network,
        step: Step,
        rows: usize,
    ) -> Result<ArrayView2<'_, f32>, ProtocolError> {
        let Format { fixed_point, packing, parties, width, threads } = self.format;
        let values = rows * width;
        self.sums.clear();
        let failed = |source| ProtocolError::Paillier { peer: self.last, step, source };
        let mut bytes = Vec::new();
        for (part, range) in self.format.parts(values) {
            let count = packing.plaintexts_for(range.len());
            bytes.resize(count * self.key.public().bits().ciphertext_bytes(), 0);
            network.recv_payload(self.last, step, part, &mut bytes).await?;
            let sum = Ciphertexts::from_bytes(self.key.public(), count, &bytes).map_err(failed)?;
            let opened = self.key.decrypt(&sum, threads).map_err(failed)?;
            let opened = Zeroizing::new(packing.decode(&opened, range.len(), u32::from(parties)).map_err(failed)?);
            self.sums.extend(opened.iter().map(|v| v.cast_unsigned()));
        }
        if self.h1.nrows() < rows {
            self.h1 = Array2::zeros((rows, width));
        }
        let h1 = self.h1.as_slice_mut().map_or(&mut [][..], |all| &mut all[..values]);
        fixed_point.open(std::slice::from_ref(&*self.sums), h1).map_err(|e| out_of_bound(step, width, e))?;
        Ok(self.h1.slice(s![..rows, ..]))
    }
}

/// What a key proof is bound to, so that it proves nothing elsewhere.
fn proof_context(session: &SessionConfig, incarnation: u64) -> Vec<u8> {
    [&session.digest()[..], &incarnation.to_le_bytes()].concat()
}

/// Randomizers made ahead by a thread of their own: at most one batch, each used once, none ever stored. What is left
/// when a session ends or a process dies is gone.
struct Pool {
    made: mpsc::Receiver<Randomizers>,
    left: Randomizers,
}

impl Pool {
    /// Begins to make randomizers, `parts` parts ahead.
    fn start(key: &PublicKey, table: RandomizerTable, mut rng: SecretRng, parts: usize) -> Self {
        let (give, made) = mpsc::sync_channel(parts.max(1));
        // Ends by itself when the pool is dropped and nobody takes any more.
        std::thread::spawn(move || while give.send(table.draw(PART, &mut rng, 1)).is_ok() {});
        Self { made, left: Randomizers::none(key) }
    }

    /// Takes `count` randomizers, waiting for those that are not made yet.
    fn take(&mut self, count: usize) -> Result<Randomizers, PaillierError> {
        while self.left.len() < count {
            let more =
                self.made.recv().map_err(|_| PaillierError::Randomizers { needed: count, left: self.left.len() })?;
            self.left.append(more)?;
        }
        self.left.take(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::first_layer::conformance::{self, session};
    use crate::{FirstLayerKind, Phase};
    use ndarray::array;
    use std::time::Duration;

    const STEP: Step = Step { phase: Phase::Train, epoch: 1, batch: 0 };

    /// The networks of party 0, party 1 and the server.
    async fn networks() -> [Network; 3] {
        let roles = [Role::party(0), Role::party(1), Role::Server];
        let made = conformance::networks(&roles, 4096, Duration::from_secs(20)).await;
        made.try_into().unwrap_or_else(|_| panic!("three networks"))
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_party_refuses_a_bad_key_and_names_the_server() {
        let session = session(FirstLayerKind::Paillier, 64, 2, 1);
        let bits = session.paillier.bits().unwrap();
        let mut rng = SecretRng::from_system().unwrap();
        let key = SecretKey::generate(bits, &mut rng).unwrap();
        let good = key.public().to_bytes();
        let proof = KeyProof::new(&key, &proof_context(&session, 1), &mut rng).to_bytes();
        let elsewhere = KeyProof::new(&key, &proof_context(&session, 2), &mut rng).to_bytes();
        let mut even = good.clone();
        *even.last_mut().unwrap() &= 0xfe;
        let mut short = good.clone();
        short[0] = 0;
        let cases = [
            ("even", even, proof.clone()),
            ("short", short, proof.clone()),
            ("without proof", good.clone(), vec![0; proof.len()]),
            ("proof of another incarnation", good.clone(), elsewhere),
            ("proof of another key", SecretKey::generate(bits, &mut rng).unwrap().public().to_bytes(), proof.clone()),
        ];
        for (what, key, proof) in cases {
            let error = block_on(async {
                let [mut party, _other, mut server] = networks().await;
                let channel = server.channel(Role::party(0)).unwrap();
                let sending = async {
                    channel.send_payload(Step::SETUP, 0, &key).await?;
                    channel.send_payload(Step::SETUP, 1, &proof).await
                };
                let (party, sent) = tokio::join!(Party::set_up(&session, 1, &mut party), sending);
                sent.unwrap();
                party.map(drop).unwrap_err()
            });
            let named = matches!(
                &error,
                ProtocolError::PaillierKey { peer: Role::Server, .. }
                    | ProtocolError::PaillierProof { peer: Role::Server, .. }
            );
            assert!(named, "{what}: {error}");
        }
    }

    #[test]
    fn a_party_refuses_bad_parts_and_names_who_sent_them() {
        let session = session(FirstLayerKind::Paillier, 64, 2, 1);
        let bits = session.paillier.bits().unwrap();
        let length = bits.ciphertext_bytes();
        block_on(async {
            let later = Step { batch: 1, ..STEP };
            // Step and number of the part that party 0 sends, and its ciphertext; `None` is an honest one.
            let cases = [
                ("zero", STEP, 0, Some(vec![0; length])),
                ("oversized", STEP, 0, Some(vec![0xff; length])),
                ("replayed in a later step", STEP, 0, None),
                ("out of order", later, 1, None),
            ];
            for (what, step, part, bytes) in cases {
                let [mut zero, mut one, mut server] = networks().await;
                let (made, side) = tokio::join!(Server::set_up(&session, 1, &mut server), async {
                    let (a, b) =
                        tokio::join!(Party::set_up(&session, 1, &mut zero), Party::set_up(&session, 1, &mut one));
                    (a.unwrap(), b.unwrap())
                });
                let server = made.unwrap();
                let (mut first, mut second) = side;
                let honest = {
                    first.encoded = Zeroizing::new(vec![0]);
                    first.encrypt(STEP, 0, 0..1).unwrap().to_bytes()
                };
                let due = if bytes.is_some() { STEP } else { later };
                let bytes = bytes.unwrap_or(honest);
                let (x, w) = (array![[1.0_f32]], array![[1.0_f32]]);
                let channel = zero.channel(Role::party(1)).unwrap();
                let (sent, got) = tokio::join!(
                    channel.send_payload(step, part, &bytes),
                    second.forward(&mut one, due, &[0], x.view(), w.view())
                );
                sent.unwrap();
                let error = got.unwrap_err();
                assert_eq!(error.ending(Role::party(1)).culprit, Role::party(0), "{what}: {error}");
                assert!(!format!("{error}").is_empty());
                drop(server);
            }
        });
    }
}
