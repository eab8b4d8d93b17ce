//! Peers that say what is due, until the input has them do something else.

use super::input::Input;
use super::stage::{FEATURES, OUTPUTS, ROWS, Stage, WIDTH};
use spnn::protocol::message::{
    AlignmentResult, Control, Done, EpochEnd, Finish, Go, HEADER_BYTES, Header, Hello, IdDigest, Kind, Metrics,
    Progress, Ready, Report, Start, decode_control, encode_control,
};
use spnn::protocol::transport::{MemoryTransport, Transport};
use spnn::protocol::{
    Batch, Cause, DataShape, Ending, FirstLayerKind, Link, Phase, Position, Reader, Role, Step, Task, Writer, hello,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// What a peer does next. All but `Due` is misbehaviour, or may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Move<'a> {
    /// Says what is due, so many times and once more.
    Due(u8),
    /// Leaves out so many messages and one more.
    Skip(u8),
    /// Sends once more what it sent last.
    Repeat,
    /// Sends a message of another time.
    Jump(u8),
    /// Sends the due message with a field of its header changed: kind, phase, checkpoint, epoch, batch, rows, columns, length.
    Header(u8, u32),
    /// Sends the due message with a byte of its body turned over.
    Body(u16, u8),
    /// Sends the due message with so many bytes more, below zero fewer, and a header that says so.
    Longer(i8),
    /// Sends the due tensor with this number in it.
    Number(u16, f32),
    /// Sends the due control message with another value in a field.
    Changed(u8, u32),
    /// Sends only the beginning of the due frame.
    Cut(u8),
    /// Sends a valid message that need not have to do with anything.
    Other(u8, u8, u8),
    /// Sends any bytes.
    Raw(&'a [u8]),
    /// Says nothing for a while.
    Wait(u8),
    /// Says nothing any more.
    Mute,
    /// Reads nothing any more.
    Deaf,
    /// Says why it goes, whether it does or not.
    Close(u8, u8),
    /// Goes without a word, and may come back.
    Drop(bool),
}

/// An input of more moves is no use: a session has about twenty messages.
const MOVES_MAX: usize = 64;

/// The moves of each of `peers`, in order.
pub(crate) fn moves<'a>(mut input: Input<'a>, peers: &[Role]) -> BTreeMap<Role, VecDeque<Move<'a>>> {
    let mut moves: BTreeMap<Role, VecDeque<Move<'_>>> = BTreeMap::new();
    for _ in 0..MOVES_MAX {
        if input.is_empty() {
            break;
        }
        let peer = peers[usize::from(input.u8()) % peers.len()];
        let next = match input.u8() % 20 {
            0..=3 => Move::Due(input.u8() % 16),
            4 => Move::Skip(input.u8() % 16),
            5 => Move::Repeat,
            6 => Move::Jump(input.u8()),
            7 => Move::Header(input.u8(), input.u32()),
            8 => Move::Body(input.u16(), input.u8()),
            9 => Move::Longer(input.u8().cast_signed()),
            10 => Move::Number(input.u16(), f32::from_bits(input.u32())),
            11 | 12 => Move::Changed(input.u8(), input.u32()),
            13 => Move::Cut(input.u8()),
            14 => Move::Other(input.u8(), input.u8(), input.u8()),
            15 => {
                let length = input.u8();
                Move::Raw(input.bytes(length.into()))
            }
            16 => Move::Wait(input.u8()),
            17 => match input.u8() % 2 {
                0 => Move::Mute,
                _ => Move::Deaf,
            },
            18 => Move::Close(input.u8(), input.u8()),
            _ => Move::Drop(!input.u8().is_multiple_of(4)),
        };
        moves.entry(peer).or_default().push_back(next);
    }
    moves
}

/// What all peers of one role know.
pub(crate) struct Play<'a> {
    stage: &'a Stage,
    task: Task,
    /// The role under test.
    me: Role,
    /// What it last told the coordinator, if that is played.
    said: watch::Sender<Option<Hello>>,
    /// What the coordinator last announced.
    incarnation: Cell<u64>,
    resume: Cell<Position>,
    /// Whether that was something else than it should be: then the wrong peers seem to misbehave.
    pub(crate) announced_wrongly: Cell<bool>,
    /// Who did anything but say what is due.
    pub(crate) deviated: RefCell<BTreeSet<Role>>,
}

/// A message that is due.
#[derive(Clone, Copy)]
enum Due {
    Hello,
    Start,
    Go,
    Finish,
    Ready,
    IdDigest,
    Progress,
    EpochEnd,
    Done,
    Tensor(Kind, Batch, u32),
    Share(Batch),
}

/// A change to one field of a control message.
type Change = Option<(u8, u32)>;

/// One connection of a peer to the role.
struct Talk<'t, 'a> {
    role: Role,
    link: &'t Arc<dyn Link>,
    writer: Writer,
    due: Vec<Due>,
    at: usize,
    last: Vec<u8>,
    moves: &'t mut VecDeque<Move<'a>>,
    deaf: &'t Cell<bool>,
}

/// Longer than any wait of a role.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl<'a> Play<'a> {
    pub(crate) fn new(stage: &'a Stage, task: Task, me: Role) -> Self {
        Self {
            stage,
            task,
            me,
            said: watch::Sender::new(None),
            incarnation: Cell::new(0),
            resume: Cell::new(Position::START),
            announced_wrongly: Cell::new(false),
            deviated: RefCell::default(),
        }
    }

    /// Plays one peer: it comes back whenever the role leaves, unless its moves say otherwise.
    pub(crate) async fn peer(&self, mut transport: MemoryTransport, mut moves: VecDeque<Move<'_>>) {
        let role = transport.me();
        loop {
            if let Some(Move::Wait(time)) = moves.front() {
                self.deviate(role);
                sleep(waiting(*time)).await;
                moves.pop_front();
            }
            let Ok(channel) = transport.connect(self.me, FOREVER).await else { return };
            if role == Role::Coordinator {
                self.said.send_replace(None);
            }
            let link = Arc::clone(channel.link());
            let mut streams = None;
            // Kept, because the role notices when it is dropped.
            let _channel = channel.wrap(|reader, writer| {
                streams = Some((reader, writer));
                (Box::new(tokio::io::empty()), Box::new(tokio::io::sink()))
            });
            let (reader, writer) = streams.expect("a channel has streams");
            let deaf = Cell::new(false);
            let due = self.script(role);
            let talk = Talk { role, link: &link, writer, due, at: 0, last: Vec::new(), moves: &mut moves, deaf: &deaf };
            tokio::select! {
                biased;
                () = self.listen(role, reader, &link, &deaf) => {}
                () = link.down() => {}
                comes_back = self.talk(talk) => if !comes_back { return },
            }
        }
    }

    /// Reads what the role sends, which is always a message.
    async fn listen(&self, role: Role, mut reader: Reader, link: &Arc<dyn Link>, deaf: &Cell<bool>) {
        loop {
            if deaf.get() {
                pending::<()>().await;
            }
            let mut bytes = [0; HEADER_BYTES];
            if reader.read_exact(&mut bytes).await.is_err() {
                return;
            }
            let header = Header::decode(&bytes).expect("a role sends messages");
            assert!(header.body_bytes < 1 << 16, "a role sends {} bytes", header.body_bytes);
            let mut body = vec![0; header.body_bytes as usize];
            if reader.read_exact(&mut body).await.is_err() {
                return;
            }
            match header.kind {
                Kind::Hello if role == Role::Coordinator => {
                    self.said.send_replace(Some(decode_control(&body).expect("a role's hello")));
                }
                // So the coordinator knows that it was heard.
                Kind::Finish => link.end(Ending { cause: Cause::Done, culprit: role }),
                _ => {}
            }
        }
    }

    /// Talks until the role goes away. False if this peer goes, and does not come back.
    async fn talk(&self, mut talk: Talk<'_, '_>) -> bool {
        loop {
            let next = talk.moves.pop_front();
            if next.is_some_and(|next| !matches!(next, Move::Due(_))) {
                self.deviate(talk.role);
            }
            let sent = match next {
                // All that is left, and then the role has to end.
                None if talk.at < talk.due.len() => self.say(&mut talk, 1).await,
                None | Some(Move::Mute) => pending().await,
                Some(Move::Due(more)) => self.say(&mut talk, usize::from(more) + 1).await,
                Some(Move::Skip(more)) => {
                    talk.at = (talk.at + usize::from(more) + 1).min(talk.due.len());
                    Ok(())
                }
                Some(Move::Wait(time)) => {
                    sleep(waiting(time)).await;
                    Ok(())
                }
                Some(Move::Deaf) => {
                    talk.deaf.set(true);
                    Ok(())
                }
                Some(Move::Close(cause, culprit)) => {
                    let culprits: Vec<Role> = self.stage.session.roles().collect();
                    let cause = Cause::from_code((cause % 96).into()).unwrap_or(Cause::Protocol);
                    talk.link.end(Ending { cause, culprit: culprits[usize::from(culprit) % culprits.len()] });
                    Ok(())
                }
                Some(Move::Drop(comes_back)) => return comes_back,
                Some(other) => {
                    let bytes = self.wrong(&mut talk, other).await;
                    talk.writer.write_all(&bytes).await
                }
            };
            if sent.is_err() {
                return true;
            }
        }
    }

    /// Says what is due, at most `times`.
    async fn say(&self, talk: &mut Talk<'_, '_>, times: usize) -> std::io::Result<()> {
        for _ in 0..times {
            let Some(&due) = talk.due.get(talk.at) else { break };
            talk.at += 1;
            talk.last = self.frame(talk.role, talk.link, due, None).await;
            talk.writer.write_all(&talk.last).await?;
        }
        Ok(())
    }

    /// The bytes of a message that is not quite what is due.
    async fn wrong(&self, talk: &mut Talk<'_, '_>, wrong: Move<'_>) -> Vec<u8> {
        let stays = matches!(wrong, Move::Repeat | Move::Jump(_) | Move::Other(..) | Move::Raw(_));
        let due = match wrong {
            Move::Jump(to) => talk.due[usize::from(to) % talk.due.len()],
            _ => talk.due[talk.at.min(talk.due.len() - 1)],
        };
        let change = if let Move::Changed(field, value) = wrong { Some((field, value)) } else { None };
        if !stays {
            talk.at = (talk.at + 1).min(talk.due.len());
        }
        if matches!(due, Due::Start) && (!stays || matches!(wrong, Move::Jump(_))) {
            self.announced_wrongly.set(true);
        }
        let mut frame = match wrong {
            Move::Repeat => talk.last.clone(),
            Move::Raw(bytes) => bytes.to_vec(),
            Move::Other(kind, phase, body) => other(kind, phase, body),
            _ => self.frame(talk.role, talk.link, due, change).await,
        };
        let body = frame.len().saturating_sub(HEADER_BYTES);
        match wrong {
            Move::Header(field, value) => {
                let (at, length) =
                    [(0, 1), (1, 1), (2, 2), (4, 4), (8, 4), (12, 4), (16, 4), (20, 4)][usize::from(field % 8)];
                frame[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
            }
            Move::Body(at, turn) if body > 0 => frame[HEADER_BYTES + usize::from(at) % body] ^= turn,
            Move::Number(at, number) if body >= 4 => {
                let at = HEADER_BYTES + usize::from(at) % (body / 4) * 4;
                frame[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            Move::Longer(by) => {
                let length = body.saturating_add_signed(by.into());
                frame.resize(HEADER_BYTES + length, 0);
                frame[20..24].copy_from_slice(&(length as u32).to_le_bytes());
            }
            Move::Cut(to) => frame.truncate(to.into()),
            _ => {}
        }
        frame
    }

    /// Everything that is due from `peer`, in order.
    fn script(&self, peer: Role) -> Vec<Due> {
        let session = &self.stage.session;
        let mut due = vec![Due::Hello];
        match (self.me, peer) {
            (Role::Coordinator, _) => {
                due.push(Due::Ready);
                let trains = self.task == Task::Train;
                for _ in 0..if trains { session.train.epochs } else { 1 } {
                    due.extend((trains && peer == session.label_role()).then_some(Due::Progress));
                    due.push(Due::EpochEnd);
                }
                due.push(Due::Done);
            }
            (_, Role::Coordinator) => due.extend([Due::Start, Due::Go, Due::Finish]),
            (Role::Party(_), Role::Party(_)) => due.push(Due::IdDigest),
            (_, Role::Server | Role::Party(_)) => {
                for batch in self.batches() {
                    self.batch(peer, batch, &mut due);
                }
            }
        }
        due
    }

    /// Every mini-batch that is left.
    fn batches(&self) -> Vec<Batch> {
        let schedule = self.stage.session.schedule(ROWS);
        if self.task != Task::Train {
            return schedule.batches(Phase::Predict, 0).collect();
        }
        let Position { epoch: first, batch } = self.resume.get();
        let epoch = |epoch| {
            let done = if epoch == first { batch as usize } else { 0 };
            schedule.batches(Phase::Train, epoch).skip(done).chain(schedule.batches(Phase::Evaluate, epoch))
        };
        (first..=self.stage.session.train.epochs).flat_map(epoch).collect()
    }

    /// What `peer` says in a mini-batch.
    fn batch(&self, peer: Role, batch: Batch, due: &mut Vec<Due>) {
        let trains = batch.step.phase == Phase::Train;
        let holder = self.stage.session.label_role();
        if peer == Role::Server {
            due.extend((self.me == holder).then_some(Due::Tensor(Kind::HiddenOutput, batch, OUTPUTS)));
            due.extend(trains.then_some(Due::Tensor(Kind::FirstLayerGradient, batch, WIDTH)));
        } else {
            due.push(Due::Share(batch));
            due.extend((trains && peer == holder).then_some(Due::Tensor(Kind::HiddenGradient, batch, OUTPUTS)));
        }
    }

    /// The bytes of a message.
    async fn frame(&self, role: Role, link: &Arc<dyn Link>, due: Due, change: Change) -> Vec<u8> {
        match due {
            Due::Hello => control(&self.hello(change)),
            Due::Start => control(&self.start(change).await),
            Due::Go => control(&self.go(change)),
            Due::Finish => control(&Finish),
            Due::Ready => {
                let DataShape { rows, features } = self.stage.shape(role);
                control(&match change {
                    Some((field, value)) if field % 2 == 0 => Ready { rows: value, features },
                    Some((_, value)) => Ready { rows, features: value },
                    None => Ready { rows, features },
                })
            }
            Due::IdDigest => {
                let key = link.pair_key("EXPORTER-spnn-id-digest").expect("a memory link has keys");
                control(&IdDigest { rows: ROWS, digest: key.digest("ordered ids", &self.stage.ids_digest()) })
            }
            Due::Progress => control(&report(Report::Progress(Progress { rows: 2, loss: 0.5 }), change)),
            Due::EpochEnd => {
                let holder = role == self.stage.session.label_role();
                let metrics = Metrics { loss: 0.5, auc: Some(0.75), accuracy: None };
                let bytes_sent = vec![("first-layer".to_owned(), 7)];
                let train_loss = holder.then_some(0.5);
                let test = holder.then_some(metrics);
                let end = EpochEnd { seconds: 1.0, bytes_sent, train_loss, test, ..EpochEnd::default() };
                control(&report(Report::EpochEnd(end), change))
            }
            Due::Done => {
                let done = Done { cpu_seconds: 0.5, peak_rss_bytes: 1, bytes_sent: Vec::new() };
                control(&report(Report::Done(done), change))
            }
            Due::Tensor(kind, batch, columns) => {
                let values: Vec<f32> = (0..batch.rows as u32 * columns).map(|i| (i % 5) as f32 / 50.0 - 0.04).collect();
                // As often as a server asks for a checkpoint that wants as many as there can be.
                let checkpoint = kind == Kind::FirstLayerGradient && batch.step.batch % 2 == 1;
                let shape = [batch.rows as u32, columns];
                frame(
                    Header { kind, step: batch.step, checkpoint, shape, body_bytes: 0 },
                    bytemuck::cast_slice(&values),
                )
            }
            Due::Share(batch) => {
                let values = 0..batch.rows as u32 * WIDTH;
                let session = &self.stage.session;
                let share: Vec<u8> = match (session.first_layer, session.sharing.ring_bits) {
                    (FirstLayerKind::Plain, _) => values.flat_map(|i| (i as f32 / 8.0).to_le_bytes()).collect(),
                    (_, 32) => values.flat_map(|i| (i << 12).to_le_bytes()).collect(),
                    _ => values.flat_map(|i| (u64::from(i) << 20).to_le_bytes()).collect(),
                };
                frame(plain(Kind::FirstLayer, batch.step), &share)
            }
        }
    }

    fn hello(&self, change: Change) -> Hello {
        let session = &self.stage.session;
        let incarnation = if self.me == Role::Coordinator { 0 } else { self.incarnation.get() };
        let mut hello = hello(session, self.task, incarnation);
        if self.me == Role::Coordinator {
            hello.checkpoints.push(Position::START);
        }
        let Some((field, value)) = change else { return hello };
        match field % 8 {
            0 => hello.version = "x".repeat(value as usize % (80 << 10)),
            1 => hello.session = hello.session.replacen("fuzz", &value.to_string(), 1),
            2 => hello.session.truncate(value as usize % hello.session.len()),
            3 => hello.task = [Task::Train, Task::Evaluate, Task::Predict][value as usize % 3],
            4 => hello.incarnation = value.into(),
            5 => hello.incarnation = u64::MAX - u64::from(value),
            6 => hello.checkpoints = vec![Position { epoch: value >> 16, batch: value & 0xffff }],
            _ => hello.checkpoints = vec![Position::START; value as usize % (32 << 10)],
        }
        hello
    }

    /// What the coordinator announces once it has heard the role.
    async fn start(&self, change: Change) -> Start {
        let mut said = self.said.subscribe();
        let said = timeout(FOREVER, said.wait_for(Option::is_some)).await;
        let said = said.ok().and_then(Result::ok).and_then(|said| said.clone());
        let held = said.map(|hello| hello.checkpoints).unwrap_or_default();
        let mut start = Start {
            incarnation: self.incarnation.get() + 1,
            resume: held.into_iter().max().unwrap_or(Position::START),
        };
        if let Some((field, value)) = change {
            match field % 3 {
                0 => start.incarnation = value.into(),
                1 => start.incarnation = u64::MAX - u64::from(value),
                _ => start.resume = Position { epoch: value >> 16, batch: value & 0xffff },
            }
        }
        self.incarnation.set(start.incarnation.min(u64::MAX - 1));
        // A role refuses to go on from where it has never been.
        if start.resume.epoch <= self.stage.session.train.epochs + 1 {
            self.resume.set(start.resume);
        }
        start
    }

    /// What the coordinator announces when all are ready.
    fn go(&self, change: Change) -> Go {
        let mut go = Go { rows: ROWS, features: vec![FEATURES; self.stage.session.parties.into()] };
        if let Some((field, value)) = change {
            match field % 5 {
                0 => go.rows = value,
                1 => go.features[0] = value,
                2 => go.features.push(value),
                3 => go.features.truncate(value as usize % 2),
                _ => go.features = vec![value; 16 << 10],
            }
        }
        go
    }

    fn deviate(&self, role: Role) {
        self.deviated.borrow_mut().insert(role);
    }
}

fn waiting(time: u8) -> Duration {
    const DAY: u64 = 24 * 3600;
    Duration::from_secs([1, 5, 30, 59, 61, 3600, 29 * DAY, 31 * DAY][usize::from(time % 8)])
}

fn report(report: Report, change: Change) -> Report {
    let Some((field, value)) = change else { return report };
    let number = f64::from(f32::from_bits(value));
    match (report, field % 6) {
        (Report::Progress(p), 0) => Report::Progress(Progress { rows: value.into(), ..p }),
        (Report::Progress(p), 1) => Report::Progress(Progress { loss: number, ..p }),
        (Report::EpochEnd(e), 0) => Report::EpochEnd(EpochEnd { seconds: number, ..e }),
        (Report::EpochEnd(e), 1) => Report::EpochEnd(EpochEnd { train_loss: Some(number), ..e }),
        (Report::EpochEnd(e), 2) => {
            let kind = Kind::ALL[value as usize % Kind::ALL.len()].name().to_owned();
            Report::EpochEnd(EpochEnd { bytes_sent: vec![(kind, u64::MAX); value as usize % 3], ..e })
        }
        (Report::EpochEnd(e), 3) => {
            Report::EpochEnd(EpochEnd { bytes_sent: vec![(String::new(), 0); value as usize % (20 << 10)], ..e })
        }
        (Report::EpochEnd(e), 4) => {
            let test = Some(Metrics { loss: number, auc: Some(number), accuracy: Some(number) });
            Report::EpochEnd(EpochEnd { test, ..e })
        }
        (Report::Done(_), 0) => {
            let bytes_sent = vec![(String::new(), 0); value as usize % 64];
            Report::Done(Done { cpu_seconds: number, peak_rss_bytes: u64::MAX, bytes_sent })
        }
        (Report::Done(_), _) => Report::EpochEnd(EpochEnd::default()),
        (_, _) => Report::Done(Done { peak_rss_bytes: value.into(), ..Done::default() }),
    }
}

/// A valid message of any kind and step.
fn other(kind: u8, phase: u8, body: u8) -> Vec<u8> {
    let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
    let step = Step { phase: Phase::from_tag(phase % 4).expect("four phases"), epoch: 1, batch: u32::from(phase >> 6) };
    let step = if step.phase == Phase::Setup { Step::SETUP } else { step };
    let body = match kind {
        Kind::Hello => Vec::new(),
        Kind::Start => encode_control(&Start { incarnation: 1, resume: Position::START }),
        Kind::Report => encode_control(&report(Report::Progress(Progress { rows: 0, loss: 0.0 }), Some((body, 0)))),
        Kind::IdDigest => vec![body; 32],
        Kind::Ready => encode_control(&Ready { rows: ROWS, features: body.into() }),
        Kind::Go => encode_control(&Go { rows: ROWS, features: vec![] }),
        Kind::AlignmentResult => encode_control(&AlignmentResult { rows: body.into() }),
        Kind::AlignmentOffer | Kind::Finish => Vec::new(),
        Kind::BlindedIds
        | Kind::CommonIds
        | Kind::FirstLayer
        | Kind::HiddenOutput
        | Kind::HiddenGradient
        | Kind::FirstLayerGradient => vec![0; body.into()],
        Kind::AuditHead => vec![body; 8],
        Kind::Query | Kind::QuerySize | Kind::InferenceTerms | Kind::InferenceBatch | Kind::BlindTerms => vec![body],
        Kind::InferenceKey | Kind::EncryptedInput | Kind::EncryptedOutput => vec![0; body.into()],
    };
    frame(plain(kind, step), &body)
}

fn control<C: Control>(message: &C) -> Vec<u8> {
    frame(plain(C::KIND, Step::SETUP), &encode_control(message))
}

/// The header of all but tensors.
fn plain(kind: Kind, step: Step) -> Header {
    Header { kind, step, checkpoint: false, shape: [0, 0], body_bytes: 0 }
}

fn frame(header: Header, body: &[u8]) -> Vec<u8> {
    let body_bytes = body.len().try_into().expect("a small body");
    [&Header { body_bytes, ..header }.encode()[..], body].concat()
}
