//! All roles of a session in one process and one thread, for debugging and tests. The same code over another transport.

use futures_util::future::{join, join_all};
use spnn_coordinator::{Observer, SessionRecord};
use spnn_crypto::SecretRng;
use spnn_party::{Outcome, Party, PartyError, PartyOptions};
use spnn_protocol::transport::memory_network;
use spnn_protocol::{JoinOptions, ProtocolError, Role, SessionConfig};
use spnn_server::Server;

/// What each role ended with.
pub struct Ends {
    /// The coordinator's record.
    pub coordinator: Result<SessionRecord, ProtocolError>,
    /// The server.
    pub server: Result<(), ProtocolError>,
    /// The parties, in order.
    pub parties: Vec<Result<Outcome, PartyError>>,
}

/// Runs a session over pipes of `pipe` bytes, with the server's layers as the session lists them. Options of the
/// coordinator, the server and each party in order.
///
/// # Errors
/// [`ProtocolError::Session`] if the layers do not fit; [`ProtocolError::Randomness`] if the system has none. Errors of
/// roles are in [`Ends`].
pub async fn run(
    session: &SessionConfig,
    coordinator: &JoinOptions,
    server: &JoinOptions,
    parties: &[PartyOptions],
    pipe: usize,
    observer: &mut dyn Observer,
) -> Result<Ends, ProtocolError> {
    let server = Server::of_session(session, server)?;
    run_with(session, coordinator, server, parties, pipe, observer).await
}

/// As [`run`], with a server of the caller's own, for example one with a model of their own.
///
/// # Errors
/// [`ProtocolError::Randomness`] if the system has none; errors of roles are in [`Ends`].
pub async fn run_with(
    session: &SessionConfig,
    coordinator: &JoinOptions,
    server: Server<'_>,
    parties: &[PartyOptions],
    pipe: usize,
    observer: &mut dyn Observer,
) -> Result<Ends, ProtocolError> {
    let roles: Vec<Role> = session.roles().collect();
    let mut rng = SecretRng::from_system()?;
    let mut ends = memory_network(&roles, pipe, coordinator.peer_timeout, &mut rng);
    let party_ends = ends.split_off(2);
    let server_end = ends.pop();
    let coordinator_end = ends.pop();
    let gone = |role| ProtocolError::NotJoined { peer: role, waited: coordinator.join_timeout };
    // Each end is moved into its role and dropped with it, so that the others notice when one is gone.
    let coordinating = async move {
        match coordinator_end {
            Some(mut end) => spnn_coordinator::run(&mut end, session, coordinator, observer).await,
            None => Err(gone(Role::Coordinator)),
        }
    };
    let serving = async move {
        match server_end {
            Some(mut end) => server.run(&mut end).await,
            None => Err(gone(Role::Server)),
        }
    };
    let training = join_all(
        party_ends
            .into_iter()
            .zip(parties)
            .map(|(mut end, options)| async move { Party::run(&mut end, session, options).await }),
    );
    let (coordinator, (server, parties)) = join(coordinating, join(serving, training)).await;
    Ok(Ends { coordinator, server, parties })
}
