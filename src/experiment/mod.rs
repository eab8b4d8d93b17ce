//! Experiments: many sessions and baselines from one file, and what they say together.
//!
//! | module | what |
//! | --- | --- |
//! | [`plan`] | experiment files, and the runs they stand for |
//! | [`data`](mod@data) | what a run trains on: files as they are, a share of their rows, or rows made up |
//! | [`line`](mod@line) | emulated access lines of the parties |
//! | [`attack`] | the property attack on what the server sees |
//! | [`store`] | finished runs on disk, so that a second start goes on |
//! | [`analysis`] | finished runs → answers, plots, tables |
//! | [`page`] | `report.html` and `results.json` |
//!
//! A new kind of experiment is a variant of [`plan::Kind`] and a function in [`analysis`].

pub mod analysis;
pub mod attack;
pub mod data;
pub mod line;
pub mod page;
pub mod plan;
pub mod store;

pub use line::{Line, PartyLine};
pub use plan::{Experiment, ExperimentError, Run};
pub use store::{Finished, Measured, Outcome, Store};
