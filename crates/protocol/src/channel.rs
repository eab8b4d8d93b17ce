//! One peer's connection: frames in and out, limits, deadlines and byte counts.

use crate::audit::{Audit, Direction};
use crate::error::{Ending, ProtocolError, kind_in_step};
use crate::message::{
    CONTROL_BYTES_MAX, CodecError, Control, HEADER_BYTES, Header, Kind, decode_control, encode_control,
};
use crate::monitor::Traffic;
use crate::{Fingerprint, Monitor, Role, Step};
use futures_util::future::BoxFuture;
use ndarray::{ArrayView2, ArrayViewMut2};
use spnn_crypto::PairKey;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tracing::trace;

#[cfg(target_endian = "big")]
compile_error!("tensors go to the wire as they lie in memory, which must be little-endian");

/// What a channel knows of the connection below it.
pub trait Link: Send + Sync {
    /// Tells the peer why this role goes, and closes.
    fn end(&self, ending: Ending);
    /// What the peer said when it went, if it did.
    fn peer_ending(&self) -> Option<Ending>;
    /// Ends when the connection is down.
    fn down(&self) -> BoxFuture<'_, ()>;
    /// What the peer did that made this side close the connection, if that is why it is down.
    fn violation(&self) -> Option<String> {
        None
    }
    /// Why the connection is down, for people.
    fn down_reason(&self) -> Option<String>;
    /// Bytes of UDP payload sent on this connection; 0 where another channel's link counts them.
    fn wire_bytes_sent(&self) -> u64;
    /// Fingerprint of the peer's key, if the connection has certificates.
    fn fingerprint(&self) -> Option<Fingerprint> {
        None
    }
    /// A secret that only the two ends of this connection know (RFC 8446 exporter), bound to `label`.
    ///
    /// # Errors
    /// [`ProtocolError`] if the connection cannot derive one.
    fn pair_key(&self, label: &'static str) -> Result<PairKey, ProtocolError>;
}

/// A byte stream of a channel, one way.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// A byte stream of a channel, the other way.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection to one peer whose role is certain.
pub struct Channel {
    end: End,
    reader: Reader,
    writer: Writer,
    sent: BTreeMap<Kind, u64>,
    watched: Option<Arc<Traffic>>,
}

/// The half of a channel that sends.
pub struct Sending<'a> {
    end: &'a End,
    writer: &'a mut Writer,
    sent: &'a mut BTreeMap<Kind, u64>,
    watched: Option<&'a Traffic>,
}

/// The half of a channel that receives.
pub struct Receiving<'a> {
    end: &'a End,
    reader: &'a mut Reader,
    watched: Option<&'a Traffic>,
}

/// The other end, and how long it may take.
struct End {
    peer: Role,
    link: Arc<dyn Link>,
    timeout: Duration,
    /// Where every message is counted, if anywhere.
    audit: Option<Audit>,
}

impl Channel {
    /// A channel over a byte stream whose other end is known to be `peer`.
    #[must_use]
    pub fn new(peer: Role, link: Arc<dyn Link>, reader: Reader, writer: Writer, timeout: Duration) -> Self {
        let end = End { peer, link, timeout, audit: None };
        Self { end, reader, writer, sent: BTreeMap::new(), watched: None }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Role {
        self.end.peer
    }

    /// The connection below.
    #[must_use]
    pub fn link(&self) -> &Arc<dyn Link> {
        &self.end.link
    }

    /// Waits at most this long for a message or for room to send one.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.end.timeout = timeout;
    }

    /// Counts what goes and comes for `monitor`, and what was sent before.
    pub fn watch(&mut self, monitor: &Monitor) {
        let traffic = monitor.traffic(self.end.peer);
        self.sent.iter().for_each(|(kind, bytes)| traffic.sent(*kind, *bytes));
        self.watched = Some(traffic);
    }

    /// From here on every message is counted in `audit`.
    pub(crate) fn count_in(&mut self, audit: &Audit) {
        self.end.audit = Some(audit.clone());
    }

    /// Application bytes sent so far, by kind, headers included.
    #[must_use]
    pub fn sent(&self) -> &BTreeMap<Kind, u64> {
        &self.sent
    }

    /// The same channel with something around its byte streams, such as faults in a test.
    #[must_use]
    pub fn wrap(mut self, around: impl FnOnce(Reader, Writer) -> (Reader, Writer)) -> Self {
        (self.reader, self.writer) = around(self.reader, self.writer);
        self
    }

    /// Both halves, to send and receive at once: where both peers speak first, sending before receiving would hang as
    /// soon as a message outgrows the buffers between them.
    pub fn split(&mut self) -> (Sending<'_>, Receiving<'_>) {
        let Self { end, reader, writer, sent, watched } = self;
        let watched = watched.as_deref();
        (Sending { end, writer, sent, watched }, Receiving { end, reader, watched })
    }

    fn sending(&mut self) -> Sending<'_> {
        self.split().0
    }

    fn receiving(&mut self) -> Receiving<'_> {
        self.split().1
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// [`ProtocolError`] if the peer is gone.
    pub async fn send<C: Control>(&mut self, step: Step, message: &C) -> Result<(), ProtocolError> {
        self.sending().send(step, message).await
    }

    /// Receives the control message that is due.
    ///
    /// # Errors
    /// As [`Receiving::recv`].
    pub async fn recv<C: Control>(&mut self, step: Step) -> Result<C, ProtocolError> {
        self.receiving().recv(step).await
    }

    /// Sends and receives a control message at once.
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`recv`](Self::recv).
    pub async fn exchange<C: Control>(&mut self, step: Step, message: &C) -> Result<C, ProtocolError> {
        let (mut sending, mut receiving) = self.split();
        let (sent, received) = futures_util::join!(sending.send(step, message), receiving.recv(step));
        let received = received?;
        sent.map(|()| received)
    }

    /// Waits, for a moment at most, until the peer has read all that was sent. Closing a connection drops what is under
    /// way; where both peers are about to close for the same reason, each should still get what tells it so.
    pub async fn linger(&mut self) {
        let reading = async {
            // The peer ends its stream only after it has read our last message.
            let _ = self.writer.shutdown().await;
            let _ = self.reader.read(&mut [0]).await;
        };
        let _ = tokio::time::timeout(LINGER, reading).await;
    }

    /// Sends a matrix row by row.
    ///
    /// # Errors
    /// [`ProtocolError`] if the peer is gone.
    pub async fn send_tensor(
        &mut self,
        kind: Kind,
        step: Step,
        tensor: ArrayView2<'_, f32>,
    ) -> Result<(), ProtocolError> {
        let shape = shape_of(tensor.dim());
        let standard = tensor.as_standard_layout();
        let values = standard.as_slice().unwrap_or_default();
        self.sending().send_frame(kind, step, shape, bytemuck::cast_slice(values)).await
    }

    /// Sends `grad_h1`, the end of a batch, and whether everyone is to make a checkpoint after it.
    ///
    /// # Errors
    /// [`ProtocolError`] if the peer is gone.
    pub async fn send_gradient(
        &mut self,
        step: Step,
        gradient: ArrayView2<'_, f32>,
        checkpoint: bool,
    ) -> Result<(), ProtocolError> {
        let (kind, shape) = (Kind::FirstLayerGradient, shape_of(gradient.dim()));
        let standard = gradient.as_standard_layout();
        let body = bytemuck::cast_slice(standard.as_slice().unwrap_or_default());
        let header = Header { checkpoint, ..header_of(kind, step, shape, body)? };
        self.sending().send_framed(header, body).await
    }

    /// Receives `grad_h1` of exactly the shape of `out`, all finite. True if a checkpoint is to be made after the batch.
    ///
    /// # Errors
    /// As [`recv_tensor`](Self::recv_tensor).
    pub async fn recv_gradient(&mut self, step: Step, out: ArrayViewMut2<'_, f32>) -> Result<bool, ProtocolError> {
        let header = self.receiving().recv_matrix(Kind::FirstLayerGradient, step, out).await?;
        Ok(header.checkpoint)
    }

    /// Receives the matrix that is due, of exactly the shape of `out`, all finite.
    ///
    /// # Errors
    /// [`ProtocolError`] if anything else comes, nothing comes in time, or the peer is gone. `out` is then unspecified.
    pub async fn recv_tensor(
        &mut self,
        kind: Kind,
        step: Step,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), ProtocolError> {
        self.receiving().recv_matrix(kind, step, out).await.map(drop)
    }

    /// Sends part `part` of a first-layer payload; protocols with one part a step count it 0.
    ///
    /// # Errors
    /// [`ProtocolError`] if the peer is gone.
    pub async fn send_payload(&mut self, step: Step, part: u32, payload: &[u8]) -> Result<(), ProtocolError> {
        self.sending().send_payload(step, part, payload).await
    }

    /// Receives the part of a first-layer payload that is due, of exactly the length of `out`.
    ///
    /// # Errors
    /// As [`Receiving::recv_payload`].
    pub async fn recv_payload(&mut self, step: Step, part: u32, out: &mut [u8]) -> Result<(), ProtocolError> {
        self.receiving().recv_payload(step, part, out).await
    }

    /// Sends bytes whose length the peer knows, such as a block of blinded ids; `place` says which they are.
    ///
    /// # Errors
    /// [`ProtocolError`] if the peer is gone.
    pub async fn send_block(
        &mut self,
        kind: Kind,
        step: Step,
        place: [u32; 2],
        bytes: &[u8],
    ) -> Result<(), ProtocolError> {
        self.sending().send_block(kind, step, place, bytes).await
    }

    /// Receives the block that is due, of exactly the length of `out`.
    ///
    /// # Errors
    /// As [`Receiving::recv_payload`].
    pub async fn recv_block(
        &mut self,
        kind: Kind,
        step: Step,
        place: [u32; 2],
        out: &mut [u8],
    ) -> Result<(), ProtocolError> {
        self.receiving().recv_block(kind, step, place, out).await
    }

    /// Sends and receives the same part of a first-layer payload at once; `out` is as long as what is due.
    ///
    /// # Errors
    /// As [`send_payload`](Self::send_payload) and [`recv_payload`](Self::recv_payload).
    pub async fn exchange_payload(
        &mut self,
        step: Step,
        part: u32,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), ProtocolError> {
        let (mut sending, mut receiving) = self.split();
        let both =
            futures_util::join!(sending.send_payload(step, part, payload), receiving.recv_payload(step, part, out));
        both.1.and(both.0)
    }

    /// Why this channel is down, once its link is.
    pub(crate) async fn lost(&self, step: Step) -> ProtocolError {
        self.end.gone(step, &std::io::ErrorKind::ConnectionAborted.into()).await
    }
}

impl Sending<'_> {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Role {
        self.end.peer
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// [`ProtocolError`] if the peer is gone.
    pub async fn send<C: Control>(&mut self, step: Step, message: &C) -> Result<(), ProtocolError> {
        let body = encode_control(message);
        self.send_frame(C::KIND, step, [0, 0], &body).await
    }

    /// Sends part `part` of a first-layer payload.
    ///
    /// # Errors
    /// [`ProtocolError`] if the peer is gone.
    pub async fn send_payload(&mut self, step: Step, part: u32, payload: &[u8]) -> Result<(), ProtocolError> {
        self.send_frame(Kind::FirstLayer, step, [part, 0], payload).await
    }

    /// Sends bytes whose length the peer knows; `place` says which they are.
    ///
    /// # Errors
    /// [`ProtocolError`] if the peer is gone.
    pub async fn send_block(
        &mut self,
        kind: Kind,
        step: Step,
        place: [u32; 2],
        bytes: &[u8],
    ) -> Result<(), ProtocolError> {
        self.send_frame(kind, step, place, bytes).await
    }

    async fn send_frame(&mut self, kind: Kind, step: Step, shape: [u32; 2], body: &[u8]) -> Result<(), ProtocolError> {
        self.send_framed(header_of(kind, step, shape, body)?, body).await
    }

    async fn send_framed(&mut self, header: Header, body: &[u8]) -> Result<(), ProtocolError> {
        let Header { kind, step, .. } = header;
        let Self { end, writer, sent, watched } = self;
        let writing = async {
            writer.write_all(&header.encode()).await?;
            writer.write_all(body).await?;
            writer.flush().await
        };
        // A peer that never reads must not hold us.
        let written = tokio::time::timeout(end.timeout, writing).await;
        match written {
            Err(_) => return Err(end.timed_out(step, format!("room for a {}", kind.name())).await),
            Ok(Err(e)) => return Err(end.gone(step, &e).await),
            Ok(Ok(())) => {}
        }
        let bytes = (HEADER_BYTES + body.len()) as u64;
        *sent.entry(kind).or_default() += bytes;
        if let Some(traffic) = watched {
            traffic.sent(kind, bytes);
        }
        end.count(Direction::Sent, &header, body);
        trace!(to = %end.peer, "sent {}", kind_in_step(kind, step));
        Ok(())
    }
}

impl Receiving<'_> {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Role {
        self.end.peer
    }

    /// Receives the control message that is due.
    ///
    /// # Errors
    /// [`ProtocolError`] if anything else comes, nothing comes in time, or the peer is gone.
    pub async fn recv<C: Control>(&mut self, step: Step) -> Result<C, ProtocolError> {
        let header = self.recv_header(C::KIND, step).await?;
        if header.shape != [0, 0] {
            return Err(self.end.codec(CodecError::Control(C::KIND.name())));
        }
        let length = header.body_bytes as usize;
        if length > CONTROL_BYTES_MAX {
            return Err(self.end.body_length(&header, format!("at most {CONTROL_BYTES_MAX}")));
        }
        let mut body = vec![0; length];
        self.read(&mut body, C::KIND, step).await?;
        self.end.count(Direction::Received, &header, &body);
        decode_control(&body).map_err(|e| self.end.codec(e))
    }

    async fn recv_matrix(
        &mut self,
        kind: Kind,
        step: Step,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<Header, ProtocolError> {
        let expected = shape_of(out.dim());
        let columns = out.ncols();
        let header = self.recv_header(kind, step).await?;
        let peer = self.end.peer;
        if header.shape != expected {
            return Err(ProtocolError::Shape { peer, step, kind, expected, found: header.shape });
        }
        let Some(values) = out.as_slice_mut() else {
            // Callers pass whole rows of their own buffers.
            return Err(self.end.body_length(&header, "a contiguous buffer".into()));
        };
        if header.body_bytes as usize != size_of_val(values) {
            return Err(self.end.body_length(&header, size_of_val(values).to_string()));
        }
        self.read(bytemuck::cast_slice_mut(values), kind, step).await?;
        self.end.count(Direction::Received, &header, bytemuck::cast_slice(values));
        match first_not_finite(values) {
            None => Ok(header),
            Some(at) => {
                let (row, column) = (at / columns.max(1), at % columns.max(1));
                Err(ProtocolError::NotFinite { peer, step, kind, row, column })
            }
        }
    }

    /// Receives the part of a first-layer payload that is due, of exactly the length of `out`.
    ///
    /// # Errors
    /// [`ProtocolError`] if anything else comes, nothing comes in time, or the peer is gone.
    pub async fn recv_payload(&mut self, step: Step, part: u32, out: &mut [u8]) -> Result<(), ProtocolError> {
        self.recv_block(Kind::FirstLayer, step, [part, 0], out).await
    }

    /// Receives bytes whose `place` and length are known.
    ///
    /// # Errors
    /// [`ProtocolError`] if anything else comes, nothing comes in time, or the peer is gone.
    pub async fn recv_block(
        &mut self,
        kind: Kind,
        step: Step,
        place: [u32; 2],
        out: &mut [u8],
    ) -> Result<(), ProtocolError> {
        let header = self.recv_header(kind, step).await?;
        if header.shape != place {
            let named = |[part, of]: [u32; 2]| match kind {
                Kind::BlindedIds | Kind::CommonIds => format!("{} of list {part} from {of}", kind.name()),
                _ => format!("part {part} of the {}", kind_in_step(kind, step)),
            };
            return Err(ProtocolError::Unexpected {
                peer: self.end.peer,
                expected: named(place),
                found: named(header.shape),
            });
        }
        if header.body_bytes as usize != out.len() {
            return Err(self.end.body_length(&header, out.len().to_string()));
        }
        self.read(out, kind, step).await?;
        self.end.count(Direction::Received, &header, out);
        Ok(())
    }

    async fn recv_header(&mut self, kind: Kind, step: Step) -> Result<Header, ProtocolError> {
        let mut bytes = [0; HEADER_BYTES];
        self.read(&mut bytes, kind, step).await?;
        let header = Header::decode(&bytes).map_err(|e| self.end.codec(e))?;
        if header.kind != kind || header.step != step {
            return Err(ProtocolError::Unexpected {
                peer: self.end.peer,
                expected: kind_in_step(kind, step),
                found: kind_in_step(header.kind, header.step),
            });
        }
        trace!(from = %self.end.peer, "receiving {}", kind_in_step(kind, step));
        Ok(header)
    }

    async fn read(&mut self, out: &mut [u8], kind: Kind, step: Step) -> Result<(), ProtocolError> {
        match tokio::time::timeout(self.end.timeout, self.reader.read_exact(out)).await {
            Err(_) => Err(self.end.timed_out(step, kind_in_step(kind, step)).await),
            Ok(Err(e)) => Err(self.end.gone(step, &e).await),
            Ok(Ok(_)) => {
                if let Some(traffic) = self.watched {
                    traffic.received(out.len() as u64);
                }
                Ok(())
            }
        }
    }
}

impl End {
    fn count(&self, direction: Direction, header: &Header, body: &[u8]) {
        if let Some(audit) = &self.audit {
            audit.message(self.peer, direction, header, body);
        }
    }

    async fn gone(&self, step: Step, error: &std::io::Error) -> ProtocolError {
        let Self { peer, link, .. } = self;
        let peer = *peer;
        // The end of a stream can arrive just before the words that say why.
        let _ = within(LAST_WORDS, link.down()).await;
        if let Some(found) = link.violation() {
            return ProtocolError::Unexpected { peer, expected: format!("a message of {step}"), found };
        }
        match link.peer_ending() {
            Some(ending) => ProtocolError::PeerEnded { peer, step, ending },
            None => ProtocolError::PeerGone { peer, step, reason: link.down_reason().unwrap_or(error.to_string()) },
        }
    }

    async fn timed_out(&self, step: Step, expected: String) -> ProtocolError {
        let Self { peer, link, timeout, .. } = self;
        let (peer, waited) = (*peer, *timeout);
        // A process that was asleep finds its time over before it has looked at what peers said meanwhile.
        match within(LAST_WORDS, link.down()).await.and_then(|()| link.peer_ending()) {
            Some(ending) => ProtocolError::PeerEnded { peer, step, ending },
            None => ProtocolError::PeerTimeout { peer, step, expected, waited },
        }
    }

    fn codec(&self, source: CodecError) -> ProtocolError {
        ProtocolError::Codec { peer: self.peer, source }
    }

    fn body_length(&self, header: &Header, expected: String) -> ProtocolError {
        let Header { kind, step, body_bytes, .. } = *header;
        ProtocolError::BodyLength { peer: self.peer, step, kind, expected, found: body_bytes.into() }
    }
}

/// How long the reason of an end may arrive after the end itself.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);
/// Longer than a round trip anywhere.
const LINGER: Duration = Duration::from_secs(2);

/// The result of a future, or nothing if it takes longer than `limit`.
pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, future).await.ok()
}

/// Waits for several channels at once, so that no peer has to wait until another one has been read.
///
/// # Errors
/// The first error of any.
pub async fn all<T>(
    futures: impl IntoIterator<Item = impl Future<Output = Result<T, ProtocolError>>>,
) -> Result<Vec<T>, ProtocolError> {
    futures_util::future::try_join_all(futures).await
}

fn header_of(kind: Kind, step: Step, shape: [u32; 2], body: &[u8]) -> Result<Header, ProtocolError> {
    let body_bytes =
        u32::try_from(body.len()).map_err(|_| ProtocolError::OwnMessage { step, kind, bytes: body.len() })?;
    Ok(Header { kind, step, checkpoint: false, shape, body_bytes })
}

/// Rows and columns; both are bounded far below 2^32 by the session.
fn shape_of((rows, columns): (usize, usize)) -> [u32; 2] {
    [u32::try_from(rows).unwrap_or(u32::MAX), u32::try_from(columns).unwrap_or(u32::MAX)]
}

fn first_not_finite(values: &[f32]) -> Option<usize> {
    /// All-ones exponent: NaN or infinity. A loop without branches vectorises; the position is looked for only on error.
    const EXPONENT: u32 = 0x7f80_0000;
    let bad = values.iter().fold(false, |bad, v| bad | (v.to_bits() & EXPONENT == EXPONENT));
    if bad { values.iter().position(|v| !v.is_finite()) } else { None }
}
