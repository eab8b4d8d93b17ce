//! Sessions small enough to run thousands of times a second.

use super::scratch;
use spnn::coordinator::{Event, Observer};
use spnn::party::data::{Columns, DataSource};
use spnn::party::{PartyOptions, digest_ids};
use spnn::protocol::{DataShape, JoinOptions, Role, SessionConfig, SessionFile, Task};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

/// One session, and what its roles have on disk.
pub(crate) struct Stage {
    pub(crate) session: SessionConfig,
    /// The two files of each role's part of the model, once trained.
    saved: BTreeMap<Role, [Vec<u8>; 2]>,
}

pub(crate) const ROWS: u32 = 5;
/// Columns of every party.
pub(crate) const FEATURES: u32 = 3;
/// Columns of H1, and of the server's output.
pub(crate) const WIDTH: u32 = 4;
pub(crate) const OUTPUTS: u32 = 2;

/// Every first layer but Paillier, whose set-up takes a second; both places of the labels; checkpoints
/// as often as can be.
pub(crate) static STAGES: LazyLock<Vec<Stage>> = LazyLock::new(|| {
    [
        ("sharing", 64, 2, 0, "binary-cross-entropy", "sgd"),
        ("sharing", 32, 2, 1, "squared-error", "momentum"),
        ("sharing", 64, 3, 0, "binary-cross-entropy", "adam"),
        ("plain", 64, 2, 1, "binary-cross-entropy", "sgld"),
    ]
    .map(|(first_layer, ring, parties, holder, loss, optimizer)| {
        let parties: Vec<_> = (0..parties).map(|i| format!("{{ label_holder = {} }}", i == holder)).collect();
        let text = format!(
            r#"
            name = "fuzz"
            first_layer = "{first_layer}"
            sharing = {{ ring_bits = {ring} }}
            seed = 7
            data = {{ test_fraction = 0.4, standardize = true, clip = 5.0, parties = [{}] }}
            [model]
            hidden_width = {WIDTH}
            server = [{{ activation = "sigmoid" }}, {{ linear = {OUTPUTS} }}, {{ dropout = 0.1 }}]
            head = {{ linear = 1, loss = "{loss}" }}
            [train]
            epochs = 2
            batch_size = 2
            optimizer = {{ kind = "{optimizer}", learning_rate = 0.1 }}
            "#,
            parties.join(", ")
        );
        Stage::new(SessionFile::parse(&text, Path::new("fuzz")).unwrap().config().unwrap())
    })
    .into()
});

impl Stage {
    /// Trains once, so that there is a model to predict with.
    fn new(session: SessionConfig) -> Self {
        let directory = scratch();
        let at = |role: Role| directory.path().join(role.to_string());
        let mut stage = Self { session, saved: BTreeMap::new() };
        let join = |role| stage.join(role, Task::Train, &at(role));
        let parties: Vec<_> = stage.session.party_roles().map(|p| stage.party(p, Task::Train, &at(p))).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (coordinator, server) = (join(Role::Coordinator), join(Role::Server));
        let mut nobody = Nobody;
        let run = spnn::in_memory::run(&stage.session, &coordinator, &server, &parties, 4096, &mut nobody);
        runtime.block_on(run).unwrap().coordinator.unwrap();
        for role in stage.session.roles().filter(|&r| r != Role::Coordinator) {
            stage.saved.insert(role, FILES.map(|name| fs::read(at(role).join(name)).unwrap()));
        }
        stage
    }

    /// A role's part of the trained model: `model.safetensors` and `model.json`.
    pub(crate) fn saved(&self, role: Role) -> &[Vec<u8>; 2] {
        &self.saved[&role]
    }

    /// What a role joins with, from its directory, which has what the task needs.
    pub(crate) fn join(&self, role: Role, task: Task, directory: &Path) -> JoinOptions {
        fs::create_dir_all(directory).unwrap();
        if task != Task::Train
            && let Some(files) = self.saved.get(&role)
        {
            FILES.iter().zip(files).for_each(|(name, bytes)| fs::write(directory.join(name), bytes).unwrap());
        }
        JoinOptions {
            allow_unprotected: true,
            checkpoint_every: Duration::ZERO,
            ..JoinOptions::new(task, directory.to_owned())
        }
    }

    /// As [`join`](Self::join), with the party's data.
    pub(crate) fn party(&self, role: Role, task: Task, directory: &Path) -> PartyOptions {
        let join = self.join(role, task, directory);
        let file = directory.join("data.csv");
        let holder = role == self.session.label_role();
        let mut text = String::from(if holder { "id,y,a,b,c\n" } else { "id,a,b,c\n" });
        for (row, id) in ids().iter().enumerate() {
            let label = if holder { format!("{},", row % 2) } else { String::new() };
            text += &format!("{id},{label}{row},{},{}\n", row * row, 7 * row % 5);
        }
        fs::write(&file, text).unwrap();
        let data = DataSource {
            id: Some(Columns::One("id".into())),
            label: holder.then(|| "y".into()),
            ..DataSource::new(file)
        };
        PartyOptions::new(join, data)
    }

    /// SHA-256 of the ids of every party.
    pub(crate) fn ids_digest(&self) -> [u8; 32] {
        digest_ids(ids())
    }

    /// What others may know of a role's data.
    pub(crate) fn shape(&self, role: Role) -> DataShape {
        match role {
            Role::Party(_) => DataShape { rows: ROWS, features: FEATURES },
            Role::Coordinator | Role::Server => DataShape::default(),
        }
    }
}

const FILES: [&str; 2] = ["model.safetensors", "model.json"];

fn ids() -> Vec<String> {
    (0..ROWS).map(|row| format!("R{row}")).collect()
}

/// Does not watch.
pub(crate) struct Nobody;

impl Observer for Nobody {
    fn on(&mut self, _event: &Event<'_>) {}
}
