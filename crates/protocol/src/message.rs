//! What is sent, and its bytes.
//!
//! A frame is a header of 24 bytes, then the body. All numbers are little-endian.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0 | kind ([`Kind`]) |
//! | 1 | phase ([`Phase`]) |
//! | 2 | 1 if everyone makes a checkpoint after this batch (first-layer gradient only), else 0 |
//! | 3 | zero |
//! | 4–7 | epoch |
//! | 8–11 | batch |
//! | 12–15 | rows (tensors) or 0 |
//! | 16–19 | columns (tensors) or 0 |
//! | 20–23 | length of the body in bytes |
//!
//! The body of a tensor is its elements row by row; of a first-layer payload, whatever that protocol says; of a control
//! message, a postcard-encoded struct of at most 64 KiB. Changing any byte raises the version in [`ALPN`].

use crate::audit::head_message;
use crate::signing::{Seal, Signer};
use crate::{Phase, Position, Role, Step};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Name and version of this protocol; TLS refuses a peer that speaks another.
pub const ALPN: &[u8] = b"spnn/7";

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 24;

/// Longest control body.
pub const CONTROL_BYTES_MAX: usize = 64 << 10;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $tag:literal, $text:literal;)*) => {
        /// Kind of a message: the tag byte.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Byte on the wire.
            #[must_use]
            pub fn tag(self) -> u8 {
                match self { $(Self::$name => $tag,)* }
            }

            /// Name in reports and errors.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// Opens a channel: session, task, incarnation.
    Hello = 1, "hello";
    /// Coordinator → all: incarnation, where to go on from.
    Start = 2, "start";
    /// All → coordinator: joined and aligned, rows and features.
    Ready = 3, "ready";
    /// Coordinator → all: begin; rows, features of each party.
    Go = 4, "go";
    /// All → coordinator: progress, metrics, done.
    Report = 5, "report";
    /// Coordinator → all: everyone is done.
    Finish = 6, "finish";
    /// Party ↔ party: keyed digest of the ordered ids.
    IdDigest = 7, "id-digest";
    /// Party ↔ party: number of ids, and what is left of an alignment that was interrupted.
    AlignmentOffer = 8, "alignment-offer";
    /// Party → party: blinded ids.
    BlindedIds = 9, "blinded-ids";
    /// Party → party: places of common ids in a list.
    CommonIds = 10, "common-ids";
    /// Party ↔ party: number of common ids.
    AlignmentResult = 11, "alignment-result";
    /// Server and parties, in pairs, after each epoch of a contract: signed heads of their audit logs.
    AuditHead = 12, "audit-head";
    /// Label holder → other parties, while predictions are served: which rows are to be scored.
    Query = 13, "query";
    /// Label holder → server, while predictions are served: how many rows are to be scored.
    QuerySize = 14, "query-size";
    /// First-layer protocol, opaque to everyone else.
    FirstLayer = 16, "first-layer";
    /// Server → label holder: z.
    HiddenOutput = 17, "hidden-output";
    /// Label holder → server: grad_z.
    HiddenGradient = 18, "hidden-gradient";
    /// Server → parties: grad_h1.
    FirstLayerGradient = 19, "first-layer-gradient";
    /// Server → client of encrypted queries: what it evaluates, and how to ask.
    InferenceTerms = 20, "inference-terms";
    /// Client → server: a batch of encrypted queries begins, or none follows.
    InferenceBatch = 21, "inference-batch";
    /// Client → server: a key to evaluate with. Label holder → all, in a session that scores blind: its public key.
    InferenceKey = 22, "inference-key";
    /// Client or party → server: a ciphertext of a batch.
    EncryptedInput = 23, "encrypted-input";
    /// Server → client or label holder: a ciphertext of the answer.
    EncryptedOutput = 24, "encrypted-output";
    /// Server → parties, in a session that scores blind: how H1 is to be encrypted.
    BlindTerms = 25, "blind-terms";
}

impl Kind {
    /// The kind of a tag byte.
    #[must_use]
    pub fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|k| k.tag() == tag)
    }
}

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// When it was due.
    pub step: Step,
    /// Everyone makes a checkpoint after this batch; only with the message that ends one.
    pub checkpoint: bool,
    /// Rows and columns of a tensor.
    pub shape: [u32; 2],
    /// Bytes that follow.
    pub body_bytes: u32,
}

/// Bytes that are no message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// Unknown tag byte.
    #[error("unknown message kind {0}")]
    Kind(u8),
    /// Unknown phase byte.
    #[error("unknown phase {0}")]
    Phase(u8),
    /// Reserved bytes are not zero.
    #[error("reserved header bytes are not zero")]
    Reserved,
    /// A control message does not decode.
    #[error("malformed {0} message")]
    Control(&'static str),
    /// Bytes are left over.
    #[error("{0} message has bytes left over")]
    Trailing(&'static str),
}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind.tag();
        bytes[1] = self.step.phase.tag();
        bytes[2] = u8::from(self.checkpoint);
        bytes[4..8].copy_from_slice(&self.step.epoch.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.step.batch.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.shape[0].to_le_bytes());
        bytes[16..20].copy_from_slice(&self.shape[1].to_le_bytes());
        bytes[20..24].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`CodecError`] on an unknown kind or phase.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, CodecError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind = Kind::from_tag(bytes[0]).ok_or(CodecError::Kind(bytes[0]))?;
        let checkpoint = match [bytes[2], bytes[3]] {
            [0, 0] => false,
            [1, 0] if kind == Kind::FirstLayerGradient => true,
            _ => return Err(CodecError::Reserved),
        };
        Ok(Self {
            kind,
            checkpoint,
            step: Step {
                phase: Phase::from_tag(bytes[1]).ok_or(CodecError::Phase(bytes[1]))?,
                epoch: word(4),
                batch: word(8),
            },
            shape: [word(12), word(16)],
            body_bytes: word(20),
        })
    }
}

/// A control message: a small struct with a kind of its own.
pub trait Control: Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: Kind;
}

/// Encodes the body of a control message.
#[must_use]
pub fn encode_control<C: Control>(message: &C) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "control messages are plain structs, which always serialise to a Vec")]
    postcard::to_stdvec(message).expect("a control message serialises")
}

/// Decodes the body of a control message.
///
/// # Errors
/// [`CodecError`] if the bytes are not exactly one message.
pub fn decode_control<C: Control>(bytes: &[u8]) -> Result<C, CodecError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(CodecError::Trailing(C::KIND.name())),
        Err(_) => Err(CodecError::Control(C::KIND.name())),
    }
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Train from initial weights.
    Train,
    /// Loss and metrics of a trained model on rows with labels.
    Evaluate,
    /// Scores of a trained model for the label holder.
    Predict,
    /// Nothing but the alignment of the parties' rows.
    Align,
    /// Scores of whichever rows the label holder asks for, until the roles are stopped.
    Serve,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Evaluate => "evaluate",
            Self::Predict => "predict",
            Self::Align => "align",
            Self::Serve => "serve",
        })
    }
}

/// First message on every channel, both ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the software, for error messages.
    pub version: String,
    /// Canonical text of the sender's session.
    pub session: String,
    /// What the sender is here to do.
    pub task: Task,
    /// To the coordinator: the last incarnation the sender used. Between others: the agreed one.
    pub incarnation: u64,
    /// To the coordinator: where the sender could go on from. [`Position::START`] if it has not begun.
    pub checkpoints: Vec<Position>,
}

/// Coordinator → all, when all have joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Above every incarnation that any role used before.
    pub incarnation: u64,
    /// Where all go on from.
    pub resume: Position,
}

/// Role → coordinator: it has joined all its peers, and its rows are aligned with theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Number of aligned rows; 0 if it holds no data.
    pub rows: u32,
    /// Number of its features; 0 if it holds no data.
    pub features: u32,
}

/// Coordinator → all: begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Go {
    /// Aligned rows.
    pub rows: u32,
    /// Features of each party.
    pub features: Vec<u32>,
}

/// Role → coordinator: how it goes. Metrics and sizes only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// From the label holder, a few times a second.
    Progress(Progress),
    /// From everyone at the end of an epoch, and of an evaluation.
    EpochEnd(EpochEnd),
    /// From everyone when everything is saved.
    Done(Done),
}

/// Label holder → coordinator: where training is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Rows trained on in this epoch.
    pub rows: u64,
    /// Mean loss over these rows.
    pub loss: f64,
}

impl EpochEnd {
    /// The same epoch, with what it took `before` an interruption added.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        self.seconds += before.seconds;
        self.cpu_seconds += before.cpu_seconds;
        self.wire_bytes_sent = self.wire_bytes_sent.saturating_add(before.wire_bytes_sent);
        for (kind, bytes) in &before.bytes_sent {
            match self.bytes_sent.iter_mut().find(|(k, _)| k == kind) {
                Some((_, sum)) => *sum = sum.saturating_add(*bytes),
                None => self.bytes_sent.push((kind.clone(), *bytes)),
            }
        }
        self
    }
}

/// Loss and metrics over rows with labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Mean loss.
    pub loss: f64,
    /// Area under the ROC curve; only for two classes that both occur.
    pub auc: Option<f64>,
    /// Share of rows whose class is predicted; only for classification.
    pub accuracy: Option<f64>,
}

/// Role → coordinator at the end of an epoch, and at the end of an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// Wall time from the first batch's start to the last update, in seconds.
    pub seconds: f64,
    /// Processor time of the sender's process in that time, in seconds.
    pub cpu_seconds: f64,
    /// Application bytes sent in that time, by message kind, headers included.
    pub bytes_sent: Vec<(String, u64)>,
    /// Bytes of UDP payload sent in that time; 0 in memory.
    pub wire_bytes_sent: u64,
    /// Mean training loss; label holder only.
    pub train_loss: Option<f64>,
    /// Metrics on the test rows; label holder only.
    pub test: Option<Metrics>,
    /// Under a contract: the signed head of the sender's audit log.
    pub head: Option<AuditHead>,
}

/// Role → coordinator: everything is saved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Processor time of the whole process, in seconds.
    pub cpu_seconds: f64,
    /// Largest resident set of the process, in bytes.
    pub peak_rss_bytes: u64,
    /// Application bytes sent in this start of the session, by message kind, headers included.
    pub bytes_sent: Vec<(String, u64)>,
}

/// Coordinator → all: everyone is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish;

/// Party ↔ party: whether both have the same ids in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdDigest {
    /// How many ids.
    pub rows: u32,
    /// HMAC of the ordered ids under the pair's key.
    pub digest: [u8; 32],
}

/// Party ↔ party: what an alignment begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlignmentOffer {
    /// Number of ids of the sender.
    pub ids: u32,
    /// Drawn anew by the sender; those of all parties together name a new alignment.
    pub nonce: [u8; 32],
    /// Name of the alignment that the sender began before with the same ids and has kept, if any.
    pub kept: Option<[u8; 32]>,
    /// Blinded ids of that one that it has on disk: party 0 of each list, party 1 of list 0 on its way.
    pub held: Vec<u32>,
    /// Whether it has the result of that one.
    pub finished: bool,
}

/// Party ↔ party: how many ids all have; from party 0 when it has compared, from all when they have stored the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlignmentResult {
    /// Common ids.
    pub rows: u32,
}

/// Label holder → other parties: the aligned rows that are to be scored next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// At least one, at most [`ROWS_MAX`](Self::ROWS_MAX).
    pub rows: Vec<u32>,
}

impl Query {
    /// A query of so many rows fits a control message, and its first layer the memory of anyone who trained.
    pub const ROWS_MAX: usize = 4096;
}

/// Label holder → server: how many rows are to be scored next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuerySize {
    /// As many as the [`Query`] names.
    pub rows: u32,
}

/// Server → client of encrypted queries, first: what is evaluated, and how to ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferenceTerms {
    /// SHA-256 of the network.
    pub network: [u8; 32],
    /// Its name.
    pub name: String,
    /// Parameters of the encryption, by name.
    pub preset: String,
    /// How samples lie in ciphertexts.
    pub packing: Packing,
    /// How a client makes inputs of its data, and what the outputs are, as the evaluator's program writes it.
    pub description: String,
    /// What inputs are multiplied by before they are rounded.
    pub scale: f64,
    /// Most samples of a batch.
    pub samples_max: u32,
    /// Ciphertexts of a batch.
    pub inputs: u32,
    /// Length of each.
    pub input_bytes: u32,
    /// Ciphertexts of the answer to a batch.
    pub outputs: u32,
    /// Length of each.
    pub output_bytes: u32,
    /// Length of each key that the client sends first.
    pub keys_bytes: Vec<u32>,
}

/// How samples lie in ciphertexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// A ciphertext for each input, a slot for each sample: many samples at once.
    SamplePerSlot,
    /// One sample over the slots of a few ciphertexts: one answer soon.
    OneSample,
}

/// Server → parties, in a session that scores blind: how H1 is to be encrypted, and what the label holder may expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlindTerms {
    /// Level of the ciphertexts.
    pub level: u32,
    /// log2 of their scale.
    pub scale_log2: u32,
    /// log2 of the largest |z| there should be.
    pub output_log2: u32,
    /// log2 of what z is off by, as a standard deviation.
    pub error_log2: i32,
}

/// Client → server: a batch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InferenceBatch {
    /// Samples in it; 0 if no batch follows.
    pub samples: u32,
}

/// The signed head of a role's audit log: all lines before that of this number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditHead {
    /// Whose log.
    pub role: Role,
    /// Number of the line that holds the signature.
    pub sequence: u64,
    /// When it was signed, RFC 3339.
    pub time: String,
    /// SHA-256 of the line before, in hexadecimal.
    pub previous: String,
    /// The signature.
    pub seal: Seal,
}

impl AuditHead {
    /// Who signed it.
    pub(crate) fn signer(&self) -> Result<Signer, String> {
        let time = self.time.parse().map_err(|e| format!("its time: {e}"))?;
        self.seal.check(&head_message(self.role, self.sequence, time, &self.previous))
    }
}

macro_rules! control {
    ($($name:ident),*) => { $(impl Control for $name { const KIND: Kind = Kind::$name; })* };
}

control!(
    Hello,
    Start,
    Ready,
    Go,
    Report,
    Finish,
    IdDigest,
    AlignmentOffer,
    AlignmentResult,
    AuditHead,
    Query,
    QuerySize,
    InferenceTerms,
    InferenceBatch,
    BlindTerms
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn vector<C: Control + PartialEq + std::fmt::Debug>(message: &C, expected: &str) {
        let bytes = encode_control(message);
        assert_eq!(hex(&bytes), expected, "{}", C::KIND.name());
        assert_eq!(&decode_control::<C>(&bytes).unwrap(), message);
    }

    /// The bytes of every message. A change here is a change of the wire format: raise [`ALPN`].
    #[test]
    fn hex_vectors() {
        let step = Step { phase: Phase::Train, epoch: 2, batch: 3 };
        let tags: Vec<u8> = Kind::ALL.iter().map(|k| k.tag()).collect();
        assert_eq!(tags, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25]);
        let header = Header { kind: Kind::HiddenOutput, step, checkpoint: false, shape: [5, 8], body_bytes: 160 };
        assert_eq!(hex(&header.encode()), "1101000002000000030000000500000008000000a0000000");
        let header = Header { kind: Kind::FirstLayerGradient, checkpoint: true, ..header };
        assert_eq!(hex(&header.encode()), "1301010002000000030000000500000008000000a0000000");
        let hello = Hello {
            version: "0.1.0".into(),
            session: "{}".into(),
            task: Task::Predict,
            incarnation: 300,
            checkpoints: vec![Position::START, Position { epoch: 2, batch: 300 }],
        };
        vector(&hello, "05302e312e30027b7d02ac0202010002ac02");
        vector(&Start { incarnation: 1, resume: Position { epoch: 5, batch: 6 } }, "010506");
        vector(&Ready { rows: 300, features: 2 }, "ac0202");
        vector(&Go { rows: 2, features: vec![3, 4] }, "02020304");
        vector(&Report::Progress(Progress { rows: 128, loss: 0.5 }), "008001000000000000e03f");
        let end = EpochEnd {
            seconds: 1.0,
            cpu_seconds: 0.0,
            bytes_sent: vec![("go".into(), 7)],
            wire_bytes_sent: 9,
            train_loss: Some(0.5),
            test: Some(Metrics { loss: 0.5, auc: None, accuracy: Some(1.0) }),
            head: None,
        };
        vector(
            &Report::EpochEnd(end),
            "01000000000000f03f00000000000000000102676f070901000000000000e03f01000000000000e03f0001000000000000f03f00",
        );
        let done = Done { cpu_seconds: 0.5, peak_rss_bytes: 1, bytes_sent: vec![("go".into(), 7)] };
        vector(&Report::Done(done), "02000000000000e03f010102676f07");
        vector(&Finish, "");
        vector(&IdDigest { rows: 300, digest: [1; 32] }, &format!("ac02{}", "01".repeat(32)));
        let offer = AlignmentOffer { ids: 300, nonce: [1; 32], kept: Some([2; 32]), held: vec![5, 0], finished: false };
        vector(&offer, &format!("ac02{}01{}02050000", "01".repeat(32), "02".repeat(32)));
        vector(&AlignmentResult { rows: 300 }, "ac02");
        vector(&Query { rows: vec![300, 2] }, "02ac0202");
        vector(&QuerySize { rows: 300 }, "ac02");
        let terms = InferenceTerms {
            network: [1; 32],
            name: "n".into(),
            preset: "n4096".into(),
            packing: Packing::OneSample,
            description: "{}".into(),
            scale: 2.0,
            samples_max: 2048,
            inputs: 784,
            input_bytes: 300,
            outputs: 10,
            output_bytes: 5,
            keys_bytes: vec![7],
        };
        let network = "01".repeat(32);
        vector(&terms, &format!("{network}016e056e3430393601027b7d000000000000004080109006ac020a050107"));
        vector(&InferenceBatch { samples: 300 }, "ac02");
        vector(&BlindTerms { level: 9, scale_log2: 103, output_log2: 300, error_log2: -12 }, "0967ac0217");
        let longest = Query { rows: vec![u32::MAX; Query::ROWS_MAX] };
        assert!(encode_control(&longest).len() <= CONTROL_BYTES_MAX);
        let seal = serde_json::from_str(r#"{"algorithm": "ed25519", "signature": "ab", "certificate": "c"}"#).unwrap();
        let (time, previous) = ("t".into(), "p".into());
        let head = AuditHead { role: Role::Server, sequence: 300, time, previous, seal };
        vector(&head, "06736572766572ac0201740170020261620163");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn any_header_decodes_to_itself_or_an_error(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn any_control_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_control::<Hello>(&bytes);
            let _ = decode_control::<Start>(&bytes);
            let _ = decode_control::<Report>(&bytes);
            let _ = decode_control::<IdDigest>(&bytes);
            let _ = decode_control::<Ready>(&bytes);
            let _ = decode_control::<Go>(&bytes);
            let _ = decode_control::<AlignmentOffer>(&bytes);
            let _ = decode_control::<Query>(&bytes);
            let _ = decode_control::<QuerySize>(&bytes);
            let _ = decode_control::<InferenceTerms>(&bytes);
            let _ = decode_control::<InferenceBatch>(&bytes);
            let _ = decode_control::<BlindTerms>(&bytes);
            if let Ok(finish) = decode_control::<Finish>(&bytes) {
                prop_assert_eq!(encode_control(&finish), bytes);
            }
        }

        #[test]
        fn plausible_control_bytes_round_trip(
            version in ".{0,20}", session in ".{0,200}", incarnation in any::<u64>(), rows in any::<u32>(),
            features in proptest::collection::vec(any::<u32>(), 0..70),
        ) {
            let checkpoints = vec![Position { epoch: rows, batch: 7 }];
            let hello = Hello { version, session, task: Task::Train, incarnation, checkpoints };
            prop_assert_eq!(&decode_control::<Hello>(&encode_control(&hello)).unwrap(), &hello);
            let go = Go { rows, features };
            let mut bytes = encode_control(&go);
            prop_assert_eq!(&decode_control::<Go>(&bytes).unwrap(), &go);
            bytes.push(0);
            prop_assert_eq!(decode_control::<Go>(&bytes), Err(CodecError::Trailing("go")));
        }
    }
}
