//! Whether a role whose session was interrupted comes back to it, and how long it tries.

use crate::{JoinOptions, Monitor, Position, ProtocolError};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// One role's attempts to take part in its session.
pub struct Attempts {
    rejoin_timeout: Duration,
    /// Until when all roles must have come together.
    deadline: Instant,
    /// Why the session was interrupted, for as long as it has not gone on.
    interrupted: Option<ProtocolError>,
    pause: Duration,
    reached: Option<Position>,
    monitor: Monitor,
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl Attempts {
    /// The first attempt: it may take [`JoinOptions::join_timeout`].
    #[must_use]
    pub fn new(options: &JoinOptions) -> Self {
        Self {
            rejoin_timeout: options.rejoin_timeout,
            deadline: Instant::now() + options.join_timeout,
            interrupted: None,
            pause: PAUSE_MIN,
            reached: None,
            monitor: options.monitor.clone(),
        }
    }

    /// How long this attempt may still wait for others.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// After an attempt that failed at `reached`: pauses and returns if there is to be another one.
    ///
    /// # Errors
    /// Why there is none: the error itself if it will not go away, otherwise what interrupted the session first.
    pub async fn again(&mut self, error: ProtocolError, reached: Option<Position>) -> Result<(), ProtocolError> {
        if !error.is_interruption() {
            // That a peer cannot be reached is what follows from its being gone.
            return Err(match (&error, self.interrupted.take()) {
                (ProtocolError::NotJoined { .. } | ProtocolError::Connect { .. }, Some(first)) => first,
                _ => error,
            });
        }
        self.monitor.interrupted(&error);
        if self.interrupted.is_none() || reached > self.reached {
            self.deadline = Instant::now() + self.rejoin_timeout;
            self.pause = PAUSE_MIN;
            self.reached = reached.max(self.reached);
            if !self.rejoin_timeout.is_zero() {
                warn!("{error}; waiting up to {} s for all roles to come back", self.rejoin_timeout.as_secs_f32());
            }
            self.interrupted = Some(error);
        } else {
            info!("{error}; trying again");
        }
        if self.patience() <= self.pause {
            return self.interrupted.take().map_or(Ok(()), Err);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}
