//! Scores of the rows that someone asks for, for as long as the service runs.
//!
//! Steps 1 to 4 of a mini-batch, for rows that the label holder names: it tells the other parties which aligned rows, and
//! the server how many. Private inputs: every party's features of these rows. Output, to the label holder only: their
//! scores. Besides, the parties learn which common rows were asked for, the server how many at a time.

use crate::PartyError;
use crate::party::{LONG, Party};
use ndarray::{Array2, ArrayView1, s};
use spnn_protocol::first_layer::PartySide;
use spnn_protocol::message::{Query, QuerySize};
use spnn_protocol::{AlignmentSpec, ProtocolError, Role, Step};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

/// Questions on their way to the label holder; copies share them. They outlast interruptions of the session.
#[derive(Clone)]
pub struct Questions(Arc<Shared>);

struct Shared {
    sender: mpsc::UnboundedSender<Question>,
    /// One start of the session at a time takes questions.
    receiver: Mutex<mpsc::UnboundedReceiver<Question>>,
    /// A place for each id that waits.
    places: Arc<Semaphore>,
    ids_max: u32,
}

struct Question {
    ids: Vec<String>,
    deadline: Instant,
    answer: oneshot::Sender<Result<Scores, NoAnswer>>,
    _places: OwnedSemaphorePermit,
}

/// What is known of each id of a question, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Whether there is a score.
    pub status: Vec<Status>,
    /// `[ids, outputs]`; zeros where there is none.
    pub values: Array2<f32>,
}

/// Whether an id has a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has.
    Scored,
    /// It is not among the rows that all parties have.
    Unknown,
    /// The contract does not let it be scored once more.
    Spent,
}

/// Why a question was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoAnswer {
    /// Too many ids wait already.
    #[error("{waiting} ids wait for their scores already, of {max} that may: ask again in a moment")]
    Full {
        /// How many wait.
        waiting: u32,
        /// How many may.
        max: u32,
    },
    /// The deadline came first.
    #[error("no answer before the deadline")]
    TooLate,
    /// A peer is gone. The same question may be asked again.
    #[error("interrupted: {0}")]
    Interrupted(String),
}

impl Questions {
    /// A queue for at most `ids_max` ids.
    #[must_use]
    pub fn new(ids_max: u32) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let places = Arc::new(Semaphore::new(ids_max as usize));
        Self(Arc::new(Shared { sender, receiver: Mutex::new(receiver), places, ids_max }))
    }

    /// How many ids wait.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.0.ids_max - u32::try_from(self.0.places.available_permits()).unwrap_or(self.0.ids_max)
    }

    /// The scores of `ids`, as they are in the label holder's file; the parts of one made of several columns with
    /// [`ID_SEPARATOR`](spnn_protocol::ID_SEPARATOR) between them.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn ask(&self, ids: Vec<String>, deadline: Instant) -> Result<Scores, NoAnswer> {
        let places = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let full = || NoAnswer::Full { waiting: self.waiting(), max: self.0.ids_max };
        let places = Arc::clone(&self.0.places).try_acquire_many_owned(places).map_err(|_| full())?;
        let (answer, answered) = oneshot::channel();
        // The receiver lives as long as the sender does.
        let _ = self.0.sender.send(Question { ids, deadline, answer, _places: places });
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(NoAnswer::TooLate),
        }
    }
}

impl fmt::Debug for Questions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Questions({} ids)", self.waiting())
    }
}

impl Question {
    /// Whether anybody still waits for the answer.
    fn is_open(&self) -> bool {
        self.deadline > Instant::now() && !self.answer.is_closed()
    }

    fn answer(self, answer: Result<Scores, NoAnswer>) {
        // Whoever asked may have gone meanwhile.
        let _ = self.answer.send(answer);
    }
}

/// Questions that are answered together, and the rows that this takes.
struct Asked {
    /// Each with the place of its ids in `rows`, or why they have none.
    questions: Vec<(Question, Vec<Result<usize, Status>>)>,
    /// Each once.
    rows: Vec<u32>,
    places: HashMap<u32, usize>,
}

impl Party<'_> {
    /// Answers until this role is asked to stop or a peer is gone: it ends with an error.
    pub(crate) async fn serve(&mut self, first_layer: &mut dyn PartySide) -> Result<(), PartyError> {
        if self.head.is_none() {
            return Ok(self.follow_queries(first_layer).await?);
        }
        match self.options.questions.clone() {
            Some(questions) => Ok(self.answer_questions(first_layer, &questions).await?),
            None => Err(PartyError::Unfit("this is the label holder, but nobody can ask it anything".into())),
        }
    }

    /// A party without labels: contributes its features of whichever rows the label holder names.
    async fn follow_queries(&mut self, first_layer: &mut dyn PartySide) -> Result<(), ProtocolError> {
        let holder = self.session.label_role();
        // Queries come when they come; a label holder that is gone is noticed by its connection.
        self.network.channel(holder)?.set_timeout(LONG);
        let (stop, first_lost) = (self.options.join.stop.clone(), self.network.first_lost());
        let following = async {
            for number in 0.. {
                let step = Step::of_query(number);
                let query = tokio::select! {
                    biased;
                    () = stop.wait() => return Err(ProtocolError::Stopped),
                    query = self.network.recv::<Query>(holder, step) => query?,
                };
                self.check_query(holder, &query)?;
                self.count_releases(&query.rows)?;
                self.contribute(first_layer, step, &query.rows).await?;
                if step.ends_epoch_of_service() {
                    self.network.audit_epoch(step).await?;
                }
            }
            Ok(())
        };
        let gone = tokio::select! {
            biased;
            ended = following => return ended,
            gone = first_lost => gone,
        };
        Err(self.network.lost(gone, Step::SETUP).await)
    }

    fn check_query(&self, holder: Role, query: &Query) -> Result<(), ProtocolError> {
        let known = self.schedule.rows();
        let found = match (query.rows.len(), query.rows.iter().find(|&&row| row >= known)) {
            (_, Some(row)) => format!("row {row}"),
            (1..=Query::ROWS_MAX, None) => return Ok(()),
            (rows, None) => format!("{rows} rows"),
        };
        let expected = format!("a query of 1 to {} rows below {known}", Query::ROWS_MAX);
        Err(ProtocolError::Unexpected { peer: holder, expected, found })
    }

    /// Step 3 for rows of a query.
    async fn contribute(
        &mut self,
        first_layer: &mut dyn PartySide,
        step: Step,
        rows: &[u32],
    ) -> Result<(), ProtocolError> {
        first_layer.prepare(step, rows);
        let Self { network, gathered, weights, data, .. } = self;
        gathered.gather(data, rows)?;
        first_layer.forward(network, step, rows, gathered.x(rows.len()), weights.view()).await?;
        self.options.join.monitor.rows_done(rows.len());
        Ok(())
    }

    /// The label holder.
    async fn answer_questions(
        &mut self,
        first_layer: &mut dyn PartySide,
        questions: &Questions,
    ) -> Result<(), ProtocolError> {
        let index = RowIndex::new(self);
        let mut queue = questions.0.receiver.lock().await;
        let mut number = 0;
        let error = loop {
            let first = match self.next_question(&mut queue).await {
                Ok(question) => question,
                Err(e) => break e,
            };
            let mut asked = Asked { questions: Vec::new(), rows: Vec::new(), places: HashMap::new() };
            let mut next = Some(first);
            // Whoever waits already is answered together.
            while let Some(question) = next.take() {
                if question.is_open() {
                    self.add(question, &index, &mut asked);
                }
                if asked.rows.len() < Query::ROWS_MAX {
                    next = queue.try_recv().ok();
                }
            }
            let first_lost = self.network.first_lost();
            let scored = tokio::select! {
                biased;
                scored = self.score(first_layer, &asked.rows, &mut number) => Ok(scored),
                gone = first_lost => Err(gone),
            };
            let scored = match scored {
                Ok(scored) => scored,
                Err(gone) => Err(self.network.lost(gone, Step::of_query(number)).await),
            };
            for (question, places) in asked.questions {
                question.answer(match &scored {
                    Ok(scores) => Ok(scores_of(&places, scores)),
                    Err(e) => Err(NoAnswer::Interrupted(e.to_string())),
                });
            }
            if let Err(e) = scored {
                break e;
            }
        };
        if self.options.join.stop.requested() {
            while let Ok(question) = queue.try_recv() {
                question.answer(Err(NoAnswer::Interrupted("this service stops".into())));
            }
        }
        Err(error)
    }

    /// The next question; an error as soon as a peer is gone or this role is asked to stop.
    async fn next_question(
        &mut self,
        queue: &mut mpsc::UnboundedReceiver<Question>,
    ) -> Result<Question, ProtocolError> {
        let first_lost = self.network.first_lost();
        let gone = tokio::select! {
            biased;
            () = self.options.join.stop.wait() => return Err(ProtocolError::Stopped),
            gone = first_lost => gone,
            question = queue.recv() => return question.ok_or(ProtocolError::Stopped),
        };
        Err(self.network.lost(gone, Step::SETUP).await)
    }

    fn add(&self, question: Question, index: &RowIndex<'_>, asked: &mut Asked) {
        let Asked { questions, rows, places } = asked;
        let place = |id: &String| {
            let row = index.find(self, id).ok_or(Status::Unknown)?;
            if !self.may_be_scored(row) {
                return Err(Status::Spent);
            }
            Ok(*places.entry(row).or_insert_with(|| {
                rows.push(row);
                rows.len() - 1
            }))
        };
        let found = question.ids.iter().map(place).collect();
        questions.push((question, found));
    }

    /// Scores of aligned rows, `[rows, outputs]`.
    async fn score(
        &mut self,
        first_layer: &mut dyn PartySide,
        rows: &[u32],
        number: &mut u64,
    ) -> Result<Array2<f32>, ProtocolError> {
        let outputs = self.head.as_ref().map_or(0, |head| head.layer.output_width());
        let mut scored = Array2::zeros((rows.len(), outputs));
        let me = self.network.me();
        for (at, rows) in rows.chunks(Query::ROWS_MAX).enumerate() {
            let step = Step::of_query(*number);
            *number += 1;
            // First here: if this role dies now, it never let the others count what it has not.
            self.count_releases(rows)?;
            let query = Query { rows: rows.to_vec() };
            for party in self.session.party_roles().filter(|&p| p != me) {
                self.network.send(party, step, &query).await?;
            }
            let size = QuerySize { rows: u32::try_from(rows.len()).unwrap_or(u32::MAX) };
            self.network.send(Role::Server, step, &size).await?;
            self.contribute(first_layer, step, rows).await?;
            let Some(head) = &mut self.head else { continue };
            head.receive(&mut self.network, step, rows.len()).await?;
            let z = head.z.slice(s![..rows.len(), ..]);
            let scores = head.layer.scores(z).map_err(|source| ProtocolError::Model { step, source })?;
            let start = at * Query::ROWS_MAX;
            scored.slice_mut(s![start..start + rows.len(), ..]).assign(&scores);
            if step.ends_epoch_of_service() {
                self.network.audit_epoch(step).await?;
            }
        }
        if !rows.is_empty() {
            // Each row once.
            self.network.released(rows.len(), outputs, 1)?;
        }
        Ok(scored)
    }
}

fn scores_of(places: &[Result<usize, Status>], scores: &Array2<f32>) -> Scores {
    let mut values = Array2::zeros((places.len(), scores.ncols()));
    for (mut row, place) in values.outer_iter_mut().zip(places) {
        let of: Option<ArrayView1<'_, f32>> = place.ok().map(|at| scores.row(at));
        of.into_iter().for_each(|of| row.assign(&of));
    }
    let status = places.iter().map(|place| place.err().unwrap_or(Status::Scored)).collect();
    Scores { status, values }
}

/// Which aligned row an id is: sorted hashes, as texts would take several times their own memory.
struct RowIndex<'a> {
    /// Where rows were aligned, ids are compared as they were then.
    spec: Option<&'a AlignmentSpec>,
    hasher: RandomState,
    rows: Vec<(u64, u32)>,
}

impl<'a> RowIndex<'a> {
    fn new(party: &Party<'a>) -> Self {
        let mut index = Self { spec: party.session.alignment.as_ref(), hasher: RandomState::new(), rows: Vec::new() };
        let all: Vec<u32> = (0..party.schedule.rows()).collect();
        index.rows = party.data.ids_of(&all).zip(&all).map(|(id, row)| (index.hash(&id), *row)).collect();
        index.rows.sort_unstable();
        index
    }

    fn normal<'t>(&self, id: &'t str) -> Cow<'t, str> {
        self.spec.map_or(Cow::Borrowed(id), |spec| spec.normalize(id))
    }

    fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(self.normal(id).as_ref())
    }

    fn find(&self, party: &Party<'_>, id: &str) -> Option<u32> {
        let hash = self.hash(id);
        let start = self.rows.partition_point(|(h, _)| *h < hash);
        let same = self.rows[start..].iter().take_while(|(h, _)| *h == hash);
        let wanted = self.normal(id);
        same.map(|(_, row)| *row).find(|row| {
            let row = [*row];
            party.data.ids_of(&row).next().is_some_and(|theirs| self.normal(&theirs) == wanted)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn ids(n: usize) -> Vec<String> {
        (0..n).map(|i| i.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_says_so_and_an_answer_makes_room() {
        let questions = Questions::new(10);
        let first = tokio::spawn({
            let questions = questions.clone();
            async move { questions.ask(ids(8), soon()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(questions.waiting(), 8);
        assert_eq!(questions.ask(ids(3), soon()).await, Err(NoAnswer::Full { waiting: 8, max: 10 }));
        let question = questions.0.receiver.lock().await.recv().await.unwrap();
        assert!(question.is_open());
        let scores = Scores { status: vec![Status::Scored; 8], values: Array2::ones((8, 1)) };
        question.answer(Ok(scores.clone()));
        assert_eq!(first.await.unwrap(), Ok(scores));
        assert_eq!(questions.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_beyond_the_deadline() {
        let questions = Questions::new(10);
        let deadline = Instant::now() + Duration::from_secs(1);
        assert_eq!(questions.ask(ids(2), deadline).await, Err(NoAnswer::TooLate));
        // It still takes its places, until whoever answers finds that nobody waits.
        assert_eq!(questions.waiting(), 2);
        let question = questions.0.receiver.lock().await.recv().await.unwrap();
        assert!(!question.is_open());
        drop(question);
        assert_eq!(questions.waiting(), 0);
    }

    #[test]
    fn scores_stand_where_their_ids_do() {
        let scores = ndarray::array![[0.25_f32, 0.5], [0.75, 1.0]];
        let places = [Err(Status::Unknown), Ok(1), Ok(0), Err(Status::Spent), Ok(1)];
        let Scores { status, values } = scores_of(&places, &scores);
        assert_eq!(values, ndarray::array![[0.0, 0.0], [0.75, 1.0], [0.25, 0.5], [0.0, 0.0], [0.75, 1.0]]);
        use Status::{Scored, Spent, Unknown};
        assert_eq!(status, [Unknown, Scored, Scored, Spent, Scored]);
    }
}
