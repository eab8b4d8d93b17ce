use super::*;
use crate::first_layer::conformance::{networks, session};
use crate::{Cause, FirstLayerKind};
use proptest::prelude::*;
use spnn_crypto::BlindingKey;
use std::collections::BTreeSet;
use std::fs;

/// The smallest pipe: where two parties both send before they receive, this hangs at once.
const PIPE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(60);

impl IdList for Vec<String> {
    fn rows(&self) -> usize {
        self.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        Cow::Borrowed(&self[row])
    }
}

/// Parties with their ids, each with a directory of its own.
struct Stage {
    session: SessionConfig,
    ids: Vec<Vec<String>>,
    directory: tempfile::TempDir,
}

type Aligned = Vec<Result<Vec<u32>, ProtocolError>>;

impl Stage {
    fn new(ids: Vec<Vec<String>>) -> Self {
        let spec = AlignmentSpec { ignore_case: true, ..AlignmentSpec::default() };
        let mut session = session(FirstLayerKind::Sharing, 64, ids.len() as u16, 2);
        session.alignment = Some(spec);
        Self { session, ids, directory: tempfile::tempdir().unwrap() }
    }

    fn of(ids: &[&[&str]]) -> Self {
        Self::new(ids.iter().map(|ids| ids.iter().map(|id| (*id).to_owned()).collect()).collect())
    }

    fn directory(&self, party: usize) -> PathBuf {
        self.directory.path().join(party.to_string())
    }

    /// All parties at once.
    fn run(&self) -> Aligned {
        self.run_until(PATIENCE)
    }

    fn run_until(&self, limit: Duration) -> Aligned {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let roles: Vec<Role> = self.session.party_roles().collect();
            let networks = networks(&roles, PIPE, PATIENCE).await;
            let each = networks.into_iter().enumerate().map(|(party, mut network)| async move {
                let mut rng = SecretRng::from_system().unwrap();
                let spec = self.session.alignment.as_ref().unwrap();
                let alignment =
                    Alignment::new(&self.session, spec, &self.ids[party], &self.directory(party), Task::Train);
                let done = tokio::time::timeout(limit, alignment.run(&mut network, &mut rng)).await;
                let done = done.unwrap_or(Err(ProtocolError::Stopped));
                if let Err(e) = &done {
                    let ending = e.ending(network.me());
                    network.channels().for_each(|c| c.link().end(ending));
                }
                done
            });
            futures_util::future::join_all(each).await
        })
    }

    /// What must come out: the same ids in the same order at every party, and all that all have.
    fn check(&self, aligned: Aligned) -> Vec<String> {
        let spec = self.session.alignment.as_ref().unwrap();
        let normal = |party: usize, row: u32| spec.normalize(&self.ids[party][row as usize]).into_owned();
        let lists: Vec<Vec<String>> = aligned
            .into_iter()
            .enumerate()
            .map(|(party, rows)| rows.unwrap().into_iter().map(|row| normal(party, row)).collect())
            .collect();
        assert!(lists.windows(2).all(|pair| pair[0] == pair[1]), "the parties have different orders");
        let sets: Vec<BTreeSet<String>> =
            self.ids.iter().map(|ids| ids.iter().map(|id| spec.normalize(id).into_owned()).collect()).collect();
        let expected: BTreeSet<String> =
            sets[0].iter().filter(|id| sets.iter().all(|set| set.contains(*id))).cloned().collect();
        assert_eq!(lists[0].iter().cloned().collect::<BTreeSet<_>>(), expected);
        assert_eq!(lists[0].len(), expected.len(), "an id is there twice");
        lists.into_iter().next().unwrap()
    }
}

/// Ids `from..to`, with some of them missing at each party.
fn numbered(parties: u32, count: u32) -> Vec<Vec<String>> {
    let ids = |party: u32| {
        let mut ids: Vec<u32> = (0..count).filter(|i| i % (parties + 2) != party).collect();
        ids.shuffle(&mut ChaCha20Rng::seed_from_u64(party.into()));
        ids.into_iter().map(|i| format!("customer {i}")).collect()
    };
    (0..parties).map(ids).collect()
}

#[test]
fn two_to_five_parties_find_exactly_what_all_have() {
    for parties in 2..=5 {
        let stage = Stage::new(numbered(parties, 60));
        stage.check(stage.run());
    }
}

#[test]
fn lists_of_several_blocks() {
    for parties in [2, 3] {
        let stage = Stage::new(numbered(parties, 2 * BLOCK as u32 + 5));
        stage.check(stage.run());
    }
}

/// `é` typed as one character and as two, white space, case, and ids of two columns.
#[test]
fn ids_are_compared_as_the_session_says() {
    let stage = Stage::of(&[
        &["caf\u{e9}", " Smith ", "X\u{1f}7", "only here"],
        &["SMITH", "x\u{1f} 7", "cafe\u{301}", "only there", "x7"],
    ]);
    assert_eq!(stage.check(stage.run()).len(), 3);
    let strict = AlignmentSpec { trim: false, ignore_case: false, unicode_nfc: false, ..AlignmentSpec::default() };
    assert_eq!(strict.normalize(" Caf\u{e9}"), " Caf\u{e9}");
    // Title case is neither upper nor lower.
    assert_eq!(AlignmentSpec { ignore_case: true, ..strict }.normalize("\u{1c5}1"), "\u{1c6}1");
    assert_ne!(strict.normalize("caf\u{e9}"), strict.normalize("cafe\u{301}"));
}

#[test]
fn an_id_that_is_there_twice_is_named_by_its_rows() {
    let aligned = Stage::of(&[&["a", "b", " A"], &["a", "b"]]).run();
    assert!(matches!(aligned[0], Err(ProtocolError::DuplicateId { first: 1, second: 3 })), "{:?}", aligned[0]);
    assert!(aligned[1].is_err());
    let aligned = Stage::of(&[&["a", " "], &["a", "b"]]).run();
    assert!(matches!(aligned[0], Err(ProtocolError::EmptyId { row: 2 })), "{:?}", aligned[0]);
}

#[test]
fn nothing_in_common_is_an_error_and_so_are_too_many() {
    let aligned = Stage::of(&[&["a", "b"], &["c"]]).run();
    assert!(aligned.iter().all(|a| matches!(a, Err(ProtocolError::NothingInCommon))), "{aligned:?}");
    let mut stage = Stage::of(&[&["a", "b"], &["c"]]);
    stage.session.alignment.as_mut().unwrap().ids_max = 1;
    let aligned = stage.run();
    let too_many = |a: &Result<_, _>| matches!(a, Err(ProtocolError::TooManyIds { who, found: 2, max: 1 }) if *who == Role::party(0));
    assert!(too_many(&aligned[0]), "{aligned:?}");
}

/// The salt is the session: lists of another one have nothing in common with these.
#[test]
fn blinded_ids_of_two_sessions_do_not_match() {
    let (one, mut other) = (Stage::of(&[&["a"], &["a"]]).session, Stage::of(&[&["a"], &["a"]]).session);
    let key = BlindingKey::new(&mut SecretRng::from_system().unwrap());
    let id = [Cow::Borrowed("a")];
    assert_eq!(key.blind_ids(&one.digest(), &id, 1), key.blind_ids(&other.digest(), &id, 1));
    other.seed += 1;
    assert_ne!(key.blind_ids(&one.digest(), &id, 1), key.blind_ids(&other.digest(), &id, 1));
}

#[test]
fn what_was_aligned_is_kept_and_keys_and_lists_are_not() {
    let stage = Stage::new(numbered(3, 50));
    let first = stage.check(stage.run());
    assert_eq!(stage.check(stage.run()), first, "the same ids were aligned anew");
    for party in 0..3 {
        let kept: Vec<_> = fs::read_dir(stage.directory(party).join("alignment/train")).unwrap().collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
    }
}

/// Whatever is on disk when all are interrupted, the next start ends with the common rows.
#[test]
fn an_interrupted_alignment_goes_on() {
    let mut resumed = 0;
    for milliseconds in [50, 200, 400, 800] {
        let stage = Stage::new(numbered(3, 3 * BLOCK as u32));
        let cut = stage.run_until(Duration::from_millis(milliseconds));
        if cut.iter().all(|c| c.is_err()) {
            let key = |party| fs::read(stage.directory(party).join("alignment/train/run")).unwrap_or_default();
            let keys: Vec<_> = (0..3).map(key).collect();
            resumed += u32::from(keys.iter().all(|k| !k.is_empty()));
        }
        stage.check(stage.run());
    }
    assert!(resumed > 0, "no run was cut in the middle");
}

/// Another party lost its directory: all begin anew, under new keys.
#[test]
fn a_lost_directory_begins_a_new_alignment() {
    let stage = Stage::new(numbered(2, 40));
    stage.check(stage.run());
    fs::remove_dir_all(stage.directory(1)).unwrap();
    stage.check(stage.run());
}

/// A party that cuts the list short, names places twice, or sends bytes that are no points is found out and named.
#[test]
fn a_peer_that_breaks_the_protocol_is_named() {
    enum Deed {
        NoPoints,
        PlaceTwice,
        TooManyCommon,
    }
    for deed in [Deed::NoPoints, Deed::PlaceTwice, Deed::TooManyCommon] {
        let stage = Stage::of(&[&["a", "b"], &["a", "b"]]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (honest, party) = runtime.block_on(async {
            let roles: Vec<Role> = stage.session.party_roles().collect();
            let mut networks = networks(&roles, 1 << 16, PATIENCE).await;
            let mut one = networks.pop().unwrap();
            let mut zero = networks.pop().unwrap();
            // The deed is party 0's, and party 1 is honest.
            let cheating = async {
                let channel = zero.channel(Role::party(1)).unwrap();
                let offer = AlignmentOffer { ids: 2, nonce: [0; 32], kept: None, held: vec![0, 0], finished: false };
                let _: AlignmentOffer = channel.exchange(Step::SETUP, &offer).await?;
                let key = BlindingKey::new(&mut SecretRng::from_system().unwrap());
                let points = match deed {
                    Deed::NoPoints => vec![[0xff; 32]; 2],
                    _ => key.blind_ids(&[0; 32], &[Cow::Borrowed("x"), Cow::Borrowed("y")], 1),
                };
                channel.send_block(Kind::BlindedIds, Step::SETUP, [0, 0], points.as_flattened()).await?;
                let mut block = vec![0; 64];
                channel.recv_block(Kind::BlindedIds, Step::SETUP, [0, 0], &mut block).await?;
                channel.recv_block(Kind::BlindedIds, Step::SETUP, [1, 0], &mut block).await?;
                let rows = if matches!(deed, Deed::TooManyCommon) { 3 } else { 2 };
                channel.send(Step::SETUP, &AlignmentResult { rows }).await?;
                channel.send_block(Kind::CommonIds, Step::SETUP, [0, 0], bytemuck::cast_slice(&[1_u32, 1])).await?;
                channel.recv_block(Kind::CommonIds, Step::SETUP, [0, 0], &mut block).await
            };
            let honest = async {
                let spec = stage.session.alignment.as_ref().unwrap();
                let mut rng = SecretRng::from_system().unwrap();
                let alignment = Alignment::new(&stage.session, spec, &stage.ids[1], &stage.directory(1), Task::Train);
                let done = alignment.run(&mut one, &mut rng).await;
                let ending = done.as_ref().unwrap_err().ending(Role::party(1));
                one.channels().for_each(|c| c.link().end(ending));
                (done, ending)
            };
            let cheating = async {
                let _: Result<(), ProtocolError> = cheating.await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                found = honest => found,
                () = cheating => unreachable!(),
            }
        });
        assert_eq!((party.cause, party.culprit), (Cause::Protocol, Role::party(0)), "{honest:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn any_sets_give_their_intersection(sets in proptest::collection::vec(proptest::collection::btree_set(0_u8..40, 1..30), 2..5)) {
        let common = sets[0].iter().filter(|id| sets.iter().all(|s| s.contains(*id))).count();
        let stage = Stage::new(sets.iter().map(|s| s.iter().map(ToString::to_string).collect()).collect());
        let aligned = stage.run();
        if common == 0 {
            prop_assert!(aligned.iter().all(|a| matches!(a, Err(ProtocolError::NothingInCommon))));
        } else {
            stage.check(aligned);
        }
    }

    #[test]
    fn normal_forms_are_fixed_points(id in "\\PC{0,20}", trim in any::<bool>(), ignore_case in any::<bool>()) {
        let spec = AlignmentSpec { trim, ignore_case, ..AlignmentSpec::default() };
        let once = spec.normalize(&id).into_owned();
        prop_assert_eq!(spec.normalize(&once), once.as_str());
    }
}
