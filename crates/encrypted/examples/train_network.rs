//! Trains the network of a recipe in the clear, or takes one that exists, and says how good it is on the test rows. With
//! `--import`, the weights are those of a PyTorch `state_dict` in safetensors:
//!
//! ```sh
//! cargo run --release -p spnn-encrypted --example train_network -- examples/digits/train.toml
//! cargo run --release -p spnn-encrypted --example train_network -- examples/mnist/train.toml --data DIR --out network.safetensors
//! cargo run --release -p spnn-encrypted --example train_network -- examples/mnist/train.toml --data DIR --network network.safetensors
//! cargo run --release -p spnn-encrypted --example train_network -- recipe.toml --import state.safetensors --out network.safetensors
//! ```

use std::error::Error;
use std::path::PathBuf;

use spnn_encrypted::{Network, Recipe, import, score, train};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let file =
        words.next().ok_or("usage: train_network RECIPE [--data DIR] [--out FILE] [--network FILE | --import FILE]")?;
    let mut recipe = Recipe::read(file.as_ref())?;
    let (mut out, mut network, mut weights) = (None, None, None);
    while let Some(word) = words.next() {
        let value = PathBuf::from(words.next().ok_or_else(|| format!("{word} needs a value"))?);
        match word.as_str() {
            "--data" => recipe.data.directory = value,
            "--out" => out = Some(value),
            "--network" => network = Some(value),
            "--import" => weights = Some(value),
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    let training = recipe.training_rows()?;
    let test = recipe.test_rows(&training)?;
    let network = match (network, weights) {
        (Some(file), _) => Network::load(&file)?,
        (None, Some(file)) => import(&recipe, &file, &training)?,
        (None, None) => {
            let trained = train(&recipe, &training, test.as_ref(), &mut |at| {
                let test = at.test.map(|score| format!(", test {score}")).unwrap_or_default();
                eprintln!("epoch {}/{}: loss {:.5}{test}, {:.0} s left", at.epoch, at.epochs, at.loss, at.seconds_left);
            })?;
            if let Some(score) = trained.before_quantization {
                eprintln!("before quantisation: test {score}");
            }
            trained.network
        }
    };
    for linear in network.linear_layers() {
        let largest = linear.kernel().iter().map(|weight| weight.unsigned_abs()).max().unwrap_or(0);
        let (inputs, outputs, bits) = (linear.inputs, linear.outputs, linear.fraction_bits);
        eprintln!(
            "{inputs} -> {outputs}: {bits} fraction bits, weights to {largest}, outputs to {:.3}",
            linear.output_max
        );
    }
    if let Some(test) = &test {
        eprintln!("quantised: test {}", score(&network, test)?);
    }
    if let Some(out) = out {
        network.save(&out)?;
        eprintln!("saved {}", out.display());
    }
    Ok(())
}
