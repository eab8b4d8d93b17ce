//! One role's channels to all its peers.

use crate::audit::Audit;
use crate::channel::{Channel, all};
use crate::error::ProtocolError;
use crate::message::{AuditHead, Control, Kind};
use crate::{Role, SessionConfig, Step, Task};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ndarray::{ArrayView2, ArrayViewMut2};
use spnn_crypto::PairKey;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

/// The channels of one role. Receives name the message that is due and give that or an error.
pub struct Network {
    me: Role,
    channels: BTreeMap<Role, Channel>,
    audit: Option<Audit>,
}

impl Network {
    /// A network without channels.
    #[must_use]
    pub fn new(me: Role) -> Self {
        Self { me, channels: BTreeMap::new(), audit: None }
    }

    /// The role whose network this is.
    #[must_use]
    pub fn me(&self) -> Role {
        self.me
    }

    /// Adds the channel to a peer.
    pub fn add(&mut self, channel: Channel) {
        self.channels.insert(channel.peer(), channel);
    }

    /// Adds the channel to a peer, and writes down from here on what goes over it.
    pub fn add_counted(&mut self, mut channel: Channel) {
        if let Some(audit) = &self.audit {
            channel.count_in(audit);
        }
        self.add(channel);
    }

    /// The channel to `peer`.
    ///
    /// # Errors
    /// [`ProtocolError::Unexpected`] if there is none: the session has no such link.
    pub fn channel(&mut self, peer: Role) -> Result<&mut Channel, ProtocolError> {
        self.channels.get_mut(&peer).ok_or_else(|| ProtocolError::Unexpected {
            peer,
            expected: "a channel".into(),
            found: "none: this role does not talk to that one".into(),
        })
    }

    /// All channels, in order of role.
    pub fn channels(&mut self) -> impl Iterator<Item = &mut Channel> {
        self.channels.values_mut()
    }

    /// From here on writes down what goes over the channels, in `audit`; over that of the coordinator, if it is not one of
    /// them, once it is [added](Self::add_counted).
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file.
    pub fn begin_audit(
        &mut self,
        audit: &Audit,
        session: &SessionConfig,
        task: Task,
        incarnation: u64,
        coordinator: Option<&Channel>,
    ) -> Result<(), ProtocolError> {
        let key = |c: &Channel| c.link().fingerprint().map(|key| key.to_string());
        let peers = self.channels.values().chain(coordinator).map(|c| (c.peer(), key(c))).collect();
        audit.start(self.me, session, task, incarnation, peers)?;
        self.channels.values_mut().for_each(|c| c.count_in(audit));
        self.audit = Some(audit.clone());
        Ok(())
    }

    /// Something protected, `[rows, width]`, was made plain to this role.
    pub fn opened(&self, step: Step, what: &'static str, rows: usize, width: usize) {
        if let Some(audit) = &self.audit {
            audit.opened(step, what, rows, width);
        }
    }

    /// This role wrote predictions of `records` records, each scored `per_record_max` times at most.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the audit log.
    pub fn released(&self, records: usize, outputs: usize, per_record_max: usize) -> Result<(), ProtocolError> {
        self.audit.as_ref().map_or(Ok(()), |audit| audit.released(records, outputs, per_record_max))
    }

    /// An epoch of `step`'s phase is over: what happened in it is written down. Under a contract, server and parties exchange the signed
    /// heads of their logs, and this role's is returned for its report.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the audit log; [`ProtocolError::Unexpected`] if a peer's head is not good.
    pub async fn audit_epoch(&mut self, step: Step) -> Result<Option<AuditHead>, ProtocolError> {
        let Some(audit) = &self.audit else { return Ok(None) };
        let Some(head) = audit.epoch_end(step.epoch)? else { return Ok(None) };
        let audit = audit.clone();
        let peers = self.channels.values_mut().filter(|c| c.peer() != Role::Coordinator);
        let ours = &head;
        let heads = all(peers.map(|c| async move { Ok((c.peer(), c.exchange(step, ours).await?)) })).await?;
        for (peer, theirs) in heads {
            audit.peer_head(peer, theirs)?;
        }
        Ok(Some(head))
    }

    /// This start of the session came to its end: the rest is written down.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the audit log.
    pub fn end_audit(&self) -> Result<(), ProtocolError> {
        self.audit.as_ref().map_or(Ok(()), |audit| audit.end(None))
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub async fn send<C: Control>(&mut self, to: Role, step: Step, message: &C) -> Result<(), ProtocolError> {
        self.channel(to)?.send(step, message).await
    }

    /// Receives the control message that is due.
    ///
    /// # Errors
    /// As [`Channel::recv`].
    pub async fn recv<C: Control>(&mut self, from: Role, step: Step) -> Result<C, ProtocolError> {
        self.channel(from)?.recv(step).await
    }

    /// Sends a matrix to one peer.
    ///
    /// # Errors
    /// As [`Channel::send_tensor`].
    pub async fn send_tensor(
        &mut self,
        to: Role,
        kind: Kind,
        step: Step,
        tensor: ArrayView2<'_, f32>,
    ) -> Result<(), ProtocolError> {
        self.channel(to)?.send_tensor(kind, step, tensor).await
    }

    /// Sends `grad_h1` to every party, and whether everyone is to make a checkpoint after the batch.
    ///
    /// # Errors
    /// As [`Channel::send_gradient`].
    pub async fn send_gradient_to_parties(
        &mut self,
        step: Step,
        gradient: ArrayView2<'_, f32>,
        checkpoint: bool,
    ) -> Result<(), ProtocolError> {
        all(self.parties().map(|(_, c)| c.send_gradient(step, gradient, checkpoint))).await.map(drop)
    }

    /// Receives the matrix that is due, of exactly the shape of `out`.
    ///
    /// # Errors
    /// As [`Channel::recv_tensor`].
    pub async fn recv_tensor(
        &mut self,
        from: Role,
        kind: Kind,
        step: Step,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), ProtocolError> {
        self.channel(from)?.recv_tensor(kind, step, out).await
    }

    /// Sends a part of a first-layer payload.
    ///
    /// # Errors
    /// As [`Channel::send_payload`].
    pub async fn send_payload(&mut self, to: Role, step: Step, part: u32, payload: &[u8]) -> Result<(), ProtocolError> {
        self.channel(to)?.send_payload(step, part, payload).await
    }

    /// Sends the same part of a first-layer payload to every party.
    ///
    /// # Errors
    /// As [`Channel::send_payload`].
    pub async fn send_payload_to_parties(
        &mut self,
        step: Step,
        part: u32,
        payload: &[u8],
    ) -> Result<(), ProtocolError> {
        all(self.parties().map(|(_, c)| c.send_payload(step, part, payload))).await.map(drop)
    }

    /// Receives the part of a first-layer payload that is due, of exactly the length of `out`.
    ///
    /// # Errors
    /// As [`Channel::recv_payload`].
    pub async fn recv_payload(
        &mut self,
        from: Role,
        step: Step,
        part: u32,
        out: &mut [u8],
    ) -> Result<(), ProtocolError> {
        self.channel(from)?.recv_payload(step, part, out).await
    }

    /// Receives one first-layer payload from every party, at once, each of exactly the length of its buffer.
    ///
    /// # Errors
    /// As [`Channel::recv_payload`].
    pub async fn recv_payloads<T: bytemuck::Pod>(
        &mut self,
        step: Step,
        out: &mut [Vec<T>],
    ) -> Result<(), ProtocolError> {
        let channels = self.parties().zip(out);
        all(channels.map(|((_, c), out)| c.recv_payload(step, 0, bytemuck::cast_slice_mut(out)))).await.map(drop)
    }

    /// Receives one block from every party, at once, each of exactly the length of its buffer.
    ///
    /// # Errors
    /// As [`Channel::recv_block`].
    pub async fn recv_blocks(
        &mut self,
        kind: Kind,
        step: Step,
        place: [u32; 2],
        out: &mut [Vec<u8>],
    ) -> Result<(), ProtocolError> {
        let channels = self.parties().zip(out);
        all(channels.map(|((_, c), out)| c.recv_block(kind, step, place, out))).await.map(drop)
    }

    /// Sends the same part of a first-layer payload to every other party and receives theirs, all at once, each of exactly
    /// the length of its buffer.
    ///
    /// # Errors
    /// As [`Channel::exchange_payload`].
    pub async fn exchange_payloads<T: bytemuck::Pod>(
        &mut self,
        step: Step,
        part: u32,
        payload: &[T],
        out: &mut [Vec<T>],
    ) -> Result<(), ProtocolError> {
        let payload = bytemuck::cast_slice(payload);
        let channels = self.parties().zip(out);
        let each = channels.map(|((_, c), out)| c.exchange_payload(step, part, payload, bytemuck::cast_slice_mut(out)));
        all(each).await.map(drop)
    }

    /// A secret of this party and another one, from their own authenticated channel.
    ///
    /// # Errors
    /// [`ProtocolError`] if there is no channel.
    pub fn pair_key(&mut self, peer: Role) -> Result<PairKey, ProtocolError> {
        self.channel(peer)?.link().pair_key("EXPORTER-spnn-pairwise-masks")
    }

    /// Waits until a peer is gone, and says which: beside a wait for someone else, who may be waiting for that one.
    pub fn first_lost(&self) -> impl Future<Output = Role> + Send + use<> {
        let links: Vec<_> = self.channels.iter().map(|(role, c)| (*role, Arc::clone(c.link()))).collect();
        let downs = links.into_iter().map(|(role, link)| async move {
            link.down().await;
            role
        });
        let mut downs: FuturesUnordered<_> = downs.collect();
        async move {
            match downs.next().await {
                Some(role) => role,
                None => std::future::pending().await,
            }
        }
    }

    /// Why a peer is gone that [`first_lost`](Self::first_lost) named.
    pub async fn lost(&mut self, peer: Role, step: Step) -> ProtocolError {
        match self.channel(peer) {
            Ok(channel) => channel.lost(step).await,
            Err(e) => e,
        }
    }

    /// Application bytes sent so far, by kind.
    #[must_use]
    pub fn sent(&self) -> BTreeMap<Kind, u64> {
        let mut total = BTreeMap::new();
        for (&kind, bytes) in self.channels.values().flat_map(Channel::sent) {
            *total.entry(kind).or_default() += bytes;
        }
        total
    }

    /// Bytes of UDP payload sent so far.
    #[must_use]
    pub fn wire_bytes_sent(&self) -> u64 {
        self.channels.values().map(|c| c.link().wire_bytes_sent()).sum()
    }

    fn parties(&mut self) -> impl Iterator<Item = (Role, &mut Channel)> {
        self.channels.iter_mut().filter(|(role, _)| matches!(role, Role::Party(_))).map(|(role, c)| (*role, c))
    }
}
