//! A whole role on a clock that jumps, with all its peers played. It ends, and if it fails because one peer misbehaved,
//! its error names that peer.

use super::input::Input;
use super::peers::{Play, moves};
use super::scratch;
use super::stage::{Nobody, STAGES, Stage};
use futures_util::future::{join_all, pending};
use spnn::coordinator;
use spnn::crypto::SecretRng;
use spnn::party::{Party, PartyError};
use spnn::protocol::transport::MemoryNetwork;
use spnn::protocol::{ProtocolError, Role, Task};
use spnn::server::Server;
use std::time::Duration;

/// A party; which one and with what data, the input says.
pub(crate) fn party(input: &[u8]) {
    run(input, |stage, which| Role::party(u16::from(which) % stage.session.parties));
}

/// The server.
pub(crate) fn server(input: &[u8]) {
    run(input, |_, _| Role::Server);
}

/// The coordinator.
pub(crate) fn coordinator(input: &[u8]) {
    run(input, |_, _| Role::Coordinator);
}

/// Every wait of a role and more: it waits 30 days for the end of a session, once for each of a peer's moves at most.
const LONG: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn run(input: &[u8], role: fn(&Stage, u8) -> Role) {
    let mut input = Input(input);
    let stage = &STAGES[usize::from(input.u8()) % STAGES.len()];
    let choice = input.u8();
    let task = [Task::Train, Task::Train, Task::Evaluate, Task::Predict][usize::from(choice & 3)];
    let rejoin = if choice & 4 == 0 { Duration::ZERO } else { Duration::from_secs(20) };
    let pipe = if choice & 8 == 0 { 4096 } else { 64 };
    let me = role(stage, choice >> 4);
    let peers: Vec<Role> = stage.session.roles().filter(|&peer| peer != me).collect();
    let mut moves = moves(input, &peers);

    let directory = scratch();
    let network = MemoryNetwork::new(pipe, Duration::from_secs(60), &mut SecretRng::from_system().unwrap());
    let play = Play::new(stage, task, me);
    let playing = join_all(peers.iter().map(|&peer| {
        let moves = moves.remove(&peer).unwrap_or_default();
        play.peer(network.transport(peer), moves)
    }));
    let session = &stage.session;
    let role = async {
        let mut end = network.transport(me);
        match me {
            Role::Party(_) => {
                let mut options = stage.party(me, task, directory.path());
                options.join.rejoin_timeout = rejoin;
                match Party::run(&mut end, session, &options).await {
                    Ok(_) => Ok(()),
                    Err(PartyError::Protocol(e)) => Err(e),
                    Err(e) => panic!("its own data: {e}"),
                }
            }
            Role::Server => {
                let mut options = stage.join(me, task, directory.path());
                options.rejoin_timeout = rejoin;
                Server::of_session(session, &options).unwrap().run(&mut end).await
            }
            Role::Coordinator => {
                let mut options = stage.join(me, task, directory.path());
                options.rejoin_timeout = rejoin;
                coordinator::run(&mut end, session, &options, &mut Nobody).await.map(drop)
            }
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let ended = runtime.block_on(async {
        tokio::select! {
            biased;
            ended = tokio::time::timeout(LONG, role) => ended.expect("a role ends"),
            () = async { drop(playing.await); pending().await } => unreachable!("nothing comes after pending"),
        }
    });
    judge(me, &play, ended);
}

/// Whoever misbehaved is named, as long as it was only one.
fn judge(me: Role, play: &Play<'_>, ended: Result<(), ProtocolError>) {
    let deviated = play.deviated.borrow();
    let Err(error) = ended else { return };
    let text = error.to_string();
    assert!(text.len() < 1000, "{me}: {text}");
    assert!(!deviated.is_empty(), "{me} failed though all did what was due: {text}");
    // What a peer may send can be too much for this role's own arithmetic, and a sum does not say whose share was wrong.
    let own = matches!(
        error,
        ProtocolError::Diverged { .. }
            | ProtocolError::OwnValue { .. }
            | ProtocolError::Model { .. }
            | ProtocolError::OpenedOutOfBound { .. }
    );
    if deviated.len() > 1 || own || play.announced_wrongly.get() {
        return;
    }
    let culprit = deviated.iter().next().expect("one").to_string();
    assert!(text.contains(&culprit), "{me} does not name {culprit}: {text}");
}
