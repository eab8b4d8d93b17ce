//! What a session reveals beyond its results: names that a contract must accept one by one.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! leaks {
    ($($name:ident = $text:literal: $says:literal;)*) => {
        /// Something that a first layer does not prevent. Each has a name to sign, and a row in `docs/contract.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Leak { $(#[doc = $says] #[serde(rename = $text)] $name,)* }

        impl Leak {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name in contracts.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub fn says(self) -> &'static str {
                match self { $(Self::$name => $says,)* }
            }
        }
    };
}

leaks! {
    ServerLearnsLabels = "server-learns-labels":
        "The server learns the label of every training record, from the gradient that the label holder sends it.";
    PartiesLearnLabels = "parties-learn-labels":
        "Parties without labels learn the labels of the training records, from the gradient of the first layer.";
    ServerCanRebuildFeatures = "server-can-rebuild-features":
        "The server can rebuild most features of the parties once it knows some records, because H1 is linear in them.";
    ServerCanFollowRecords = "server-can-follow-records":
        "The server knows which rows of different epochs are the same record, though not whose it is.";
    CoordinatorLearnsMetrics = "coordinator-learns-metrics":
        "The coordinator learns losses, metrics, numbers of rows and columns, and timing.";
    PartiesLearnCommonRows = "parties-learn-common-rows":
        "Every party learns which of its ids all the others have, too, and how many ids each of them has.";
    ServerLearnsEachProduct = "server-learns-each-product":
        "The server learns every party's own product of features and weights: nothing of the first layer is protected.";
    CollusionOfServerAndAllOtherParties = "collusion-of-server-and-all-other-parties":
        "The server and all parties but one together open the last one's product of features and weights.";
    CollusionOfDealerAndAnyParty = "collusion-of-dealer-and-any-party":
        "The coordinator, which deals the triples, and any one party together open the features and weights of all.";
}

/// What no session prevents, whatever its first layer.
pub(crate) const OF_EVERY_SESSION: &[Leak] = &[
    Leak::ServerLearnsLabels,
    Leak::PartiesLearnLabels,
    Leak::ServerCanRebuildFeatures,
    Leak::ServerCanFollowRecords,
    Leak::CoordinatorLearnsMetrics,
];

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
