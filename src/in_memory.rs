//! All roles of a session in one process and one thread, for debugging and tests. The same code over another transport.

use futures_util::future::{join, join_all};
use spnn_coordinator::{Observer, SessionRecord};
use spnn_crypto::SecretRng;
use spnn_party::{Outcome, Party, PartyError, PartyOptions};
use spnn_protocol::transport::MemoryNetwork;
use spnn_protocol::{JoinOptions, ProtocolError, Role, SessionConfig};
use spnn_server::Server;

/// What each role ended with.
pub struct Ends {
    /// The coordinator's record.
    pub coordinator: Result<Option<SessionRecord>, ProtocolError>,
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
    let network = MemoryNetwork::new(pipe, coordinator.peer_timeout, &mut SecretRng::from_system()?);
    // Each end is moved into its role and dropped with it, so that the others notice when one is gone.
    let mut coordinator_end = network.transport(Role::Coordinator);
    let mut server_end = network.transport(Role::Server);
    let coordinating = async move { spnn_coordinator::run(&mut coordinator_end, session, coordinator, observer).await };
    let serving = async move { server.run(&mut server_end).await };
    let training = join_all(session.party_roles().zip(parties).map(|(role, options)| {
        let mut end = network.transport(role);
        async move { Party::run(&mut end, session, options).await }
    }));
    let (coordinator, (server, parties)) = join(coordinating, join(serving, training)).await;
    Ok(Ends { coordinator, server, parties })
}
