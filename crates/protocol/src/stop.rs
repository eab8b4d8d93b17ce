//! Asking a role to stop: it finishes its mini-batch, makes a checkpoint and goes.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Asks a role to stop, from anywhere.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// A batch may take so long to finish; then it is given up, and trained again on resuming.
    pub const GRACE: Duration = Duration::from_secs(3);

    /// Asks.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Whether anyone asked.
    #[must_use]
    pub fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Ends when someone asks.
    pub async fn wait(&self) {
        // The sender lives as long as this does, so that waiting can only end well.
        let _ = self.0.subscribe().wait_for(|requested| *requested).await;
    }

    /// Ends when someone asked so long ago that nothing more is waited for.
    pub async fn overdue(&self) {
        self.wait().await;
        tokio::time::sleep(Self::GRACE).await;
    }
}
