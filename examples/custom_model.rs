//! A server model of one's own: any struct with [`Model`]. Here two layers with a short cut around them, which the
//! session file has no word for.
//!
//! Run it with `cargo run --release --example custom_model`: it trains the breast-cancer example with all roles in one
//! process and asserts its result.

use ndarray::{Array2, ArrayView2};
use spnn::coordinator::{Event, Observer};
use spnn::nn::{Mode, Model, ModelError, Parameter, Sequential};
use spnn::party::PartyOptions;
use spnn::protocol::{JoinOptions, Role, SessionFile, Task};
use spnn::server::Server;
use std::error::Error;
use std::path::Path;

/// `z = h1 + layers(h1)`: the layers learn what to add.
struct Residual {
    layers: Sequential,
    z: Array2<f32>,
    grad_h1: Array2<f32>,
}

impl Model for Residual {
    fn output_width(&self) -> usize {
        self.layers.output_width()
    }

    fn forward(&mut self, h1: ArrayView2<'_, f32>, mode: Mode) -> Result<ArrayView2<'_, f32>, ModelError> {
        self.z = &self.layers.forward(h1, mode)? + &h1;
        Ok(self.z.view())
    }

    fn backward(&mut self, grad_z: ArrayView2<'_, f32>) -> Result<ArrayView2<'_, f32>, ModelError> {
        self.grad_h1 = &self.layers.backward(grad_z)? + &grad_z;
        Ok(self.grad_h1.view())
    }

    fn parameters(&mut self) -> Vec<Parameter<'_>> {
        self.layers.parameters()
    }
}

/// Prints the last epoch.
struct Print;

impl Observer for Print {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Epoch(e) = event
            && e.epoch % 10 == 0
        {
            eprintln!("epoch {}: loss {:.4}, test {:?}", e.epoch, e.train_loss.unwrap_or_default(), e.test);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/breast_cancer");
    let file = SessionFile::read(&directory.join("session.toml"))?;
    let session = file.config()?;
    let run_dir = std::env::temp_dir().join(format!("spnn-custom-model-{}", std::process::id()));
    let join = |role: Role| JoinOptions::new(Task::Train, run_dir.join(role.to_string()));
    let parties: Vec<PartyOptions> = (session.party_roles().zip(spnn::sources::sources(&file.data, &directory)?))
        .map(|(role, data)| PartyOptions::new(join(role), data))
        .collect();

    let width = session.model.hidden_width as usize;
    let model = Residual {
        layers: Sequential::new(width, &session.model.server, session.seed)?,
        z: Array2::zeros((0, width)),
        grad_h1: Array2::zeros((0, width)),
    };
    let (coordinator, server) = (join(Role::Coordinator), join(Role::Server));
    let server = Server::new(&session, &server, Box::new(model));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ends =
        runtime.block_on(spnn::in_memory::run_with(&session, &coordinator, server, &parties, 256 << 10, &mut Print))?;
    std::fs::remove_dir_all(&run_dir)?;
    let auc = ends.coordinator?.and_then(|r| r.test?.auc).ok_or("no test rows")?;
    assert!(auc > 0.98, "test AUC {auc}");
    eprintln!("test AUC {auc:.4} with a model of our own");
    Ok(())
}
