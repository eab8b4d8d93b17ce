//! Which rows all parties have: private set intersection of their ids.
//!
//! Private input: each party's ids. Output, to the parties only: for every id that all of them have, its row, in an order
//! common to all that says nothing of the ids. Coordinator and server learn the number of common rows, no more.
//!
//! **What each party learns:** which of its own ids *all* the others have, too, and how many ids each other party has.
//! With three or more parties it does not learn which of its ids only some of them have. Party 0, which compares, also
//! learns how many ids each group of parties has in common, not which. This holds for parties that follow the protocol: one
//! that makes ids up (all telephone numbers, say) learns which of them the others have. The sizes of the sets are capped by
//! the session and logged, so that it can be noticed.
//!
//! Every party blinds ids as points of ristretto255 under a secret scalar of its own
//! ([`BlindingKey`](spnn_crypto::BlindingKey)), after hashing them with the digest of the session as salt: points of one
//! session say nothing about those of another.
//!
//! 1. Parties exchange [`AlignmentOffer`]: number of ids, and what is left of an alignment that was interrupted.
//! 2. Party `s` shuffles its ids, blinds them and sends them on; every other party blinds them, party 0 last. Party 0
//!    then has list `s`, blinded by all, in an order that only `s` knows.
//! 3. Party 0's own list goes through all others, too; party 1 shuffles it, so that party 0 cannot tell its own.
//! 4. Party 0 sorts the lists, keeps what is in all of them, and tells each party the places of those in its list. For its
//!    own list it asks party 1, who knows the shuffle.
//! 5. All confirm that they have stored the result, and clear their keys.
//!
//! With `k` parties of `n` ids, a party computes `k·n` products of a point and a scalar and sends at most
//! `32·k·n` bytes. Lists go as blocks of [`BLOCK`] ids and are kept on disk as they come: an alignment that is interrupted
//! goes on where it was, under the same keys. Keys and lists are removed when all have the result.
//!
//! Source of the two-party case: Huberman, Franklin and Hogg, "Enhancing privacy and trust in electronic communities"
//! (1999). The comparison at one party over lists whose order it does not know is what keeps three or more parties from
//! learning of pairs.

mod kept;

use crate::contract::Leak;
use crate::message::{AlignmentOffer, AlignmentResult, Kind};
use crate::{Channel, Network, PartyId, ProtocolError, Role, SessionConfig, Step, Task, all};
use kept::{Finished, Kept, Run};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spnn_crypto::{BLINDED_BYTES, BlindedId, SecretRng};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing::info;
use unicode_normalization::UnicodeNormalization;

/// How ids are made comparable, and how many a party may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlignmentSpec {
    /// Remove white space around an id, and around each part of one that is made of several columns.
    pub trim: bool,
    /// Compare in lower case.
    pub ignore_case: bool,
    /// Unicode normalisation form C, so that `é` is one character however it was typed.
    pub unicode_nfc: bool,
    /// More ids of a party are refused.
    pub ids_max: u32,
}

impl Default for AlignmentSpec {
    fn default() -> Self {
        Self { trim: true, ignore_case: false, unicode_nfc: true, ids_max: 100_000_000 }
    }
}

/// The ids of a party's rows, in the order of its file.
pub trait IdList: Sync {
    /// How many.
    fn rows(&self) -> usize;
    /// The id of a row; the parts of one made of several columns with [`ID_SEPARATOR`] between them.
    fn id(&self, row: usize) -> Cow<'_, str>;
}

/// What alignment does not prevent; [`first_layer`](crate::first_layer) has the rest.
pub(crate) const LEAK: Leak = Leak::PartiesLearnCommonRows;

/// Stands between the parts of an id made of several columns: the ASCII unit separator, which no part may contain.
pub const ID_SEPARATOR: char = '\u{1f}';

/// Ids in a block: 256 KiB, some tenths of a second of one core.
pub const BLOCK: usize = 8192;

impl AlignmentSpec {
    /// An id as all parties must write it.
    #[must_use]
    pub fn normalize<'a>(&self, id: &'a str) -> Cow<'a, str> {
        let part = |part: &'a str| {
            let mut part = Cow::Borrowed(if self.trim { part.trim() } else { part });
            if self.ignore_case && part.chars().any(|c| c.is_ascii_uppercase() || !c.is_ascii()) {
                part = Cow::Owned(part.to_lowercase());
            }
            if self.unicode_nfc && !part.is_ascii() {
                part = Cow::Owned(part.nfc().collect());
            }
            part
        };
        if !id.contains(ID_SEPARATOR) {
            return part(id);
        }
        let parts: Vec<Cow<'_, str>> = id.split(ID_SEPARATOR).map(part).collect();
        Cow::Owned(parts.join(&ID_SEPARATOR.to_string()))
    }
}

/// One party's side of an alignment.
pub struct Alignment<'a> {
    session: &'a SessionConfig,
    spec: &'a AlignmentSpec,
    ids: &'a dyn IdList,
    directory: PathBuf,
    threads: usize,
}

impl<'a> Alignment<'a> {
    /// An alignment of `ids`, which keeps what it needs to go on after an interruption in `directory/alignment`.
    #[must_use]
    pub fn new(
        session: &'a SessionConfig,
        spec: &'a AlignmentSpec,
        ids: &'a dyn IdList,
        directory: &Path,
        task: Task,
    ) -> Self {
        // New rows to be scored do not displace the rows of training, whose checkpoints go with their order.
        let of_task = match task {
            Task::Train | Task::Align => "train",
            Task::Evaluate => "evaluate",
            Task::Predict => "predict",
            Task::Serve => "serve",
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { session, spec, ids, directory: directory.join("alignment").join(of_task), threads }
    }

    /// Finds the common rows: for each, where it is among this party's ids.
    ///
    /// # Errors
    /// [`ProtocolError::DuplicateId`] and [`ProtocolError::EmptyId`] naming rows of this party;
    /// [`ProtocolError::TooManyIds`] naming who has; [`ProtocolError::NothingInCommon`]; what a peer does wrong, and what
    /// cannot be stored.
    pub async fn run(&self, network: &mut Network, rng: &mut SecretRng) -> Result<Vec<u32>, ProtocolError> {
        let me = network.me();
        let count = self.check_count(me, self.ids.rows())?;
        let digest = self.check_ids()?;
        let kept = Kept::find(&self.directory, &self.session.digest(), &digest)?;
        let parties = usize::from(self.session.parties);

        let ours = kept.offer(count, me, parties, rng.bytes32());
        let parties_only = network.channels().filter(|c| matches!(c.peer(), Role::Party(_)));
        let theirs = parties_only.map(async |c| Ok((c.peer(), c.exchange(Step::SETUP, &ours).await?)));
        let mut offers: BTreeMap<Role, AlignmentOffer> = all(theirs).await?.into_iter().collect();
        for (&role, offer) in &offers {
            self.check_count(role, offer.ids as usize)?;
            info!("{role} brings {} ids", offer.ids);
        }
        offers.insert(me, ours);
        let offers: Vec<AlignmentOffer> = offers.into_values().collect();

        let same = offers.iter().all(|o| o.kept.is_some() && o.kept == offers[0].kept);
        if same && offers.iter().all(|o| o.finished) {
            info!("the rows were aligned before");
            return kept.result();
        }
        let held = if same { held(&offers, parties)? } else { Held::nothing(parties) };
        let run = if same { kept.resume()? } else { Run::begin(&self.directory, self.session, &digest, &offers, rng)? };
        let mut working = Working { alignment: self, network, offers: &offers, run };
        let rows = working.intersect(&held).await?;
        if !rows.is_empty() {
            info!("{} of {count} rows are common to all parties", rows.len());
            let (session, id) = (self.session.digest(), working.run.id);
            Finished { id, ids: digest, session, rows: &rows }.store(&self.directory)?;
        }
        // Whoever has heard this of all knows that nobody needs the lists again.
        let stored = AlignmentResult { rows: count_of(rows.len()) };
        let channels = network.channels().filter(|c| matches!(c.peer(), Role::Party(_)));
        all(channels.map(|c| confirm(c, &stored))).await?;
        Run::clear(&self.directory, parties);
        if rows.is_empty() {
            return Err(ProtocolError::NothingInCommon);
        }
        Ok(rows)
    }

    fn check_count(&self, who: Role, found: usize) -> Result<u32, ProtocolError> {
        let max = self.spec.ids_max;
        u32::try_from(found).ok().filter(|n| *n <= max).ok_or(ProtocolError::TooManyIds { who, found, max })
    }

    /// Refuses an id that is empty or there twice; the digest of all.
    fn check_ids(&self) -> Result<[u8; 32], ProtocolError> {
        let mut digest = Sha256::new();
        let mut tags = Vec::with_capacity(self.ids.rows());
        for row in 0..self.ids.rows() {
            let id = self.ids.id(row);
            let id = self.spec.normalize(&id);
            if id.split(ID_SEPARATOR).any(str::is_empty) {
                return Err(ProtocolError::EmptyId { row: row + 1 });
            }
            digest.update((id.len() as u64).to_le_bytes());
            digest.update(id.as_bytes());
            let tag: [u8; 32] = Sha256::digest(id.as_bytes()).into();
            tags.push((tag_of(&tag), count_of(row)));
        }
        tags.sort_unstable();
        match tags.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => {
                Err(ProtocolError::DuplicateId { first: pair[0].1 as usize + 1, second: pair[1].1 as usize + 1 })
            }
            None => Ok(digest.finalize().into()),
        }
    }
}

async fn confirm(channel: &mut Channel, stored: &AlignmentResult) -> Result<(), ProtocolError> {
    let theirs = channel.exchange(Step::SETUP, stored).await?;
    if theirs != *stored {
        let (expected, found) = (format!("{} common rows", stored.rows), theirs.rows.to_string());
        return Err(ProtocolError::Unexpected { peer: channel.peer(), expected, found });
    }
    if stored.rows == 0 {
        // Both are about to go, and each should still hear why.
        channel.linger().await;
    }
    Ok(())
}

/// An alignment under way.
struct Working<'w, 'a> {
    alignment: &'w Alignment<'a>,
    network: &'w mut Network,
    /// Of all parties, in order.
    offers: &'w [AlignmentOffer],
    run: Run,
}

/// How far an interrupted alignment came: ids of every list that are at their ends.
struct Held {
    /// At party 0.
    lists: Vec<u32>,
    /// Of list 0, at party 1.
    to_shuffle: u32,
}

impl Held {
    fn nothing(parties: usize) -> Self {
        Self { lists: vec![0; parties], to_shuffle: 0 }
    }
}

/// What party 0 and party 1 say they hold, as far as it is whole blocks: one that was cut off comes again.
fn held(offers: &[AlignmentOffer], parties: usize) -> Result<Held, ProtocolError> {
    let [zero, one, ..] = offers else { return Ok(Held::nothing(parties)) };
    let whole = |held: u32, of: u32| if held >= of { of } else { held - held % BLOCK as u32 };
    for (offer, lists, party) in [(zero, parties, 0), (one, 1, 1)] {
        if offer.held.len() != lists {
            let (expected, found) = (format!("how far {lists} lists are"), format!("{}", offer.held.len()));
            return Err(ProtocolError::Unexpected { peer: Role::party(party), expected, found });
        }
    }
    let lists = zero.held.iter().zip(offers).map(|(&held, offer)| whole(held, offer.ids)).collect();
    Ok(Held { lists, to_shuffle: whole(one.held[0], zero.ids) })
}

impl Working<'_, '_> {
    /// Steps 2 to 4.
    async fn intersect(&mut self, held: &Held) -> Result<Vec<u32>, ProtocolError> {
        let parties = self.alignment.session.parties;
        let me = self.me();
        if parties == 1 {
            return Ok((0..self.offers[0].ids).collect());
        }
        // Step 3 first: its shuffle makes everyone wait.
        if me == 0 {
            self.send_own(1, held.to_shuffle).await?;
        } else if me == 1 {
            self.collect(0, 0, held.to_shuffle, true).await?;
        }
        let shuffled = if me == 1 { self.shuffled(self.offers[0].ids) } else { Vec::new() };
        let next = |party: u16| if party + 1 == parties { 0 } else { party + 1 };
        match me {
            0 => self.collect(0, parties - 1, held.lists[0], false).await?,
            1 => self.send_shuffled(&shuffled, next(1), held.lists[0]).await?,
            _ => self.pass_on(0, me - 1, next(me), held.lists[0]).await?,
        }
        for owner in 1..parties {
            let from = held.lists[usize::from(owner)];
            // The owner, the others in ascending order, party 0.
            let route: Vec<u16> = [owner].into_iter().chain((1..parties).filter(|p| *p != owner)).chain([0]).collect();
            let Some(at) = route.iter().position(|p| *p == me) else { continue };
            match (at, route.get(at + 1)) {
                (0, Some(&to)) => self.send_own(to, from).await?,
                (_, Some(&to)) => self.pass_on(owner, route[at - 1], to, from).await?,
                (_, None) => self.collect(owner, route[at - 1], from, true).await?,
            }
        }
        if me == 0 { self.compare().await } else { self.learn(&shuffled).await }
    }

    fn me(&self) -> u16 {
        match self.network.me() {
            Role::Party(PartyId(me)) => me,
            Role::Coordinator | Role::Server => 0,
        }
    }

    /// Rows in the order in which this party's ids are sent.
    fn own_order(&self) -> Vec<u32> {
        shuffle(self.offers[usize::from(self.me())].ids, &self.run.own_seed)
    }

    /// Places in list 0 in the order in which party 1 sends them on.
    fn shuffled(&self, ids: u32) -> Vec<u32> {
        shuffle(ids, &self.run.shuffle_seed)
    }

    async fn send_own(&mut self, to: u16, from: u32) -> Result<(), ProtocolError> {
        let Alignment { session, spec, ids, threads, .. } = *self.alignment;
        let (owner, order, salt) = (self.me(), self.own_order(), session.digest());
        let mut progress = Progress::new(owner, from, order.len());
        for (at, rows) in blocks(&order, from) {
            let texts: Vec<Cow<'_, str>> = rows.iter().map(|&row| ids.id(row as usize)).collect();
            let texts: Vec<Cow<'_, str>> = texts.iter().map(|id| spec.normalize(id)).collect();
            let blinded = self.run.key.blind_ids(&salt, &texts, threads);
            self.send(to, owner, at, &blinded).await?;
            progress.on(at + rows.len());
        }
        Ok(())
    }

    async fn send_shuffled(&mut self, shuffled: &[u32], to: u16, from: u32) -> Result<(), ProtocolError> {
        let list = self.run.read_list(0, shuffled.len())?;
        for (at, places) in blocks(shuffled, from) {
            let block: Vec<BlindedId> = places.iter().map(|&place| list[place as usize]).collect();
            self.send(to, 0, at, &block).await?;
        }
        Ok(())
    }

    async fn pass_on(&mut self, owner: u16, from_party: u16, to: u16, from: u32) -> Result<(), ProtocolError> {
        let ids = self.offers[usize::from(owner)].ids as usize;
        let mut progress = Progress::new(owner, from, ids);
        for at in (from as usize..ids).step_by(BLOCK) {
            let mut block = self.recv(from_party, owner, at, ids).await?;
            self.blind(&mut block, from_party)?;
            self.send(to, owner, at, &block).await?;
            progress.on(at + block.len());
        }
        Ok(())
    }

    /// Keeps a list that ends here, on disk.
    async fn collect(&mut self, owner: u16, from_party: u16, from: u32, blind: bool) -> Result<(), ProtocolError> {
        let ids = self.offers[usize::from(owner)].ids as usize;
        let mut progress = Progress::new(owner, from, ids);
        let mut list = self.run.open_list(owner, from)?;
        for at in (from as usize..ids).step_by(BLOCK) {
            let mut block = self.recv(from_party, owner, at, ids).await?;
            if blind {
                self.blind(&mut block, from_party)?;
            }
            list.append(&block)?;
            progress.on(at + block.len());
        }
        Ok(())
    }

    fn blind(&self, block: &mut [BlindedId], from: u16) -> Result<(), ProtocolError> {
        let wrong = |source| ProtocolError::BlindedId { peer: Role::party(from), source };
        self.run.key.blind(block, self.alignment.threads).map_err(wrong)
    }

    async fn send(&mut self, to: u16, list: u16, at: usize, block: &[BlindedId]) -> Result<(), ProtocolError> {
        let channel = self.network.channel(Role::party(to))?;
        channel.send_block(Kind::BlindedIds, Step::SETUP, [list.into(), count_of(at)], block.as_flattened()).await
    }

    async fn recv(&mut self, from: u16, list: u16, at: usize, ids: usize) -> Result<Vec<BlindedId>, ProtocolError> {
        let mut block = vec![[0; BLINDED_BYTES]; BLOCK.min(ids - at)];
        let channel = self.network.channel(Role::party(from))?;
        channel
            .recv_block(Kind::BlindedIds, Step::SETUP, [list.into(), count_of(at)], block.as_flattened_mut())
            .await?;
        Ok(block)
    }

    /// Step 4 at party 0: finds what is in all lists and opens to each party where that is in its own.
    async fn compare(&mut self) -> Result<Vec<u32>, ProtocolError> {
        let mut places = common(self.offers.len(), |list| {
            let ids = self.offers[list].ids as usize;
            let blinded = self.run.read_list(count_of(list) as u16, ids)?;
            Ok(blinded.iter().map(tag_of).zip(0..).collect())
        })?;
        let rows = places[0].len();
        for party in 1..self.alignment.session.parties {
            let channel = self.network.channel(Role::party(party))?;
            channel.send(Step::SETUP, &AlignmentResult { rows: count_of(rows) }).await?;
        }
        let shuffled = std::mem::take(&mut places[0]);
        self.open_places(1, 0, &shuffled).await?;
        let own = self.recv_places(1, 0, rows, self.offers[0].ids).await?;
        for party in 1..self.alignment.session.parties {
            self.open_places(party, party, &places[usize::from(party)]).await?;
        }
        Ok(self.rows_at(&own))
    }

    /// Step 4 at the others.
    async fn learn(&mut self, shuffled: &[u32]) -> Result<Vec<u32>, ProtocolError> {
        let (me, zero) = (self.me(), Role::party(0));
        let ours = self.offers[usize::from(me)].ids;
        let AlignmentResult { rows } = self.network.channel(zero)?.recv(Step::SETUP).await?;
        let most = self.offers.iter().map(|o| o.ids).min().unwrap_or(0);
        if rows > most {
            let (expected, found) = (format!("at most {most} common rows"), rows.to_string());
            return Err(ProtocolError::Unexpected { peer: zero, expected, found });
        }
        if me == 1 {
            let places = self.recv_places(0, 0, rows as usize, self.offers[0].ids).await?;
            let own: Vec<u32> = places.iter().map(|&place| shuffled[place as usize]).collect();
            self.open_places(0, 0, &own).await?;
        }
        let places = self.recv_places(0, me, rows as usize, ours).await?;
        Ok(self.rows_at(&places))
    }

    fn rows_at(&self, places: &[u32]) -> Vec<u32> {
        let order = self.own_order();
        places.iter().map(|&place| order[place as usize]).collect()
    }

    /// Opens to a party which places of a list hold common ids.
    async fn open_places(&mut self, to: u16, list: u16, places: &[u32]) -> Result<(), ProtocolError> {
        for (at, block) in blocks(places, 0) {
            let channel = self.network.channel(Role::party(to))?;
            channel
                .send_block(Kind::CommonIds, Step::SETUP, [list.into(), count_of(at)], bytemuck::cast_slice(block))
                .await?;
        }
        Ok(())
    }

    async fn recv_places(&mut self, from: u16, list: u16, rows: usize, ids: u32) -> Result<Vec<u32>, ProtocolError> {
        let mut places = vec![0_u32; rows];
        let peer = Role::party(from);
        for (block, at) in places.chunks_mut(BLOCK).zip((0..).step_by(BLOCK)) {
            let channel = self.network.channel(peer)?;
            channel
                .recv_block(Kind::CommonIds, Step::SETUP, [list.into(), at], bytemuck::cast_slice_mut(block))
                .await?;
        }
        let mut seen = vec![false; ids as usize];
        for &place in &places {
            match seen.get_mut(place as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => {
                    let expected = format!("{rows} different places below {ids}");
                    return Err(ProtocolError::Unexpected { peer, expected, found: format!("place {place}") });
                }
            }
        }
        Ok(places)
    }
}

/// A blinded id as far as it is compared: two that differ agree here with probability 2^-128.
type Tag = [u8; 16];

fn tag_of(bytes: &[u8; 32]) -> Tag {
    let mut tag = [0; 16];
    tag.copy_from_slice(&bytes[..16]);
    tag
}

/// For every list the places of the ids that all lists have, in the order of their tags. `read` gives a list's tags with
/// their places.
fn common(
    lists: usize,
    mut read: impl FnMut(usize) -> Result<Vec<(Tag, u32)>, ProtocolError>,
) -> Result<Vec<Vec<u32>>, ProtocolError> {
    let mut sorted = |list| {
        let mut tags = read(list)?;
        tags.sort_unstable();
        Ok::<_, ProtocolError>(tags)
    };
    let (mut tags, first): (Vec<Tag>, Vec<u32>) = sorted(0)?.into_iter().unzip();
    let mut places = vec![first];
    for list in 1..lists {
        let other = sorted(list)?;
        let mut at = 0;
        let (mut keep, mut found) = (Vec::with_capacity(tags.len()), Vec::new());
        for tag in &tags {
            while other.get(at).is_some_and(|(t, _)| t < tag) {
                at += 1;
            }
            let place = other.get(at).filter(|(t, _)| t == tag).map(|(_, place)| *place);
            keep.push(place.is_some());
            found.extend(place);
        }
        let kept = |values: &mut Vec<u32>| {
            let mut keep = keep.iter();
            values.retain(|_| keep.next().copied().unwrap_or(false));
        };
        places.iter_mut().for_each(kept);
        let mut keep = keep.iter();
        tags.retain(|_| keep.next().copied().unwrap_or(false));
        places.push(found);
    }
    Ok(places)
}

/// `0..count` in an order that only whoever has the seed knows.
fn shuffle(count: u32, seed: &[u8; 32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    order.shuffle(&mut ChaCha20Rng::from_seed(*seed));
    order
}

/// Blocks of `values` from `from` on, each with its place.
fn blocks(values: &[u32], from: u32) -> impl Iterator<Item = (usize, &[u32])> {
    let from = (from as usize).min(values.len());
    (from..).step_by(BLOCK).zip(values[from..].chunks(BLOCK))
}

/// Numbers of ids are at most `ids_max`, a `u32`.
fn count_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Tells people now and then how far a list is.
struct Progress {
    list: u16,
    from: usize,
    total: usize,
    started: Instant,
    told: Instant,
}

impl Progress {
    const EVERY: Duration = Duration::from_secs(5);

    fn new(list: u16, from: u32, total: usize) -> Self {
        let now = Instant::now();
        Self { list, from: from as usize, total, started: now, told: now }
    }

    fn on(&mut self, done: usize) {
        if self.told.elapsed() < Self::EVERY {
            return;
        }
        self.told = Instant::now();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let left = self.started.elapsed().as_secs_f64() * (self.total - done) as f64
            / done.saturating_sub(self.from).max(1) as f64;
        info!("aligning: {done} of {} ids of {}, {left:.0} s left of this list", self.total, Role::party(self.list));
    }
}

#[cfg(test)]
mod tests;
