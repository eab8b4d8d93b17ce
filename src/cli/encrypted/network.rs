//! `spnn encrypted train` and `show`.

use super::super::simulate::say;
use super::{CliError, Train};
use indicatif::HumanDuration;
use spnn::encrypted::{
    Layer, Network, OneSampleServer, Recipe, SamplesServer, Shape, import, score, train as train_network,
};
use spnn::protocol::inference::Evaluator;
use std::path::Path;
use std::time::Duration;

pub(super) fn train(args: &Train) -> Result<(), CliError> {
    let mut recipe = Recipe::read(&args.recipe)?;
    if let Some(data) = &args.data {
        recipe.data.directory.clone_from(data);
    }
    let training = recipe.training_rows()?;
    let test = recipe.test_rows(&training)?;
    let network = match &args.import {
        Some(weights) => import(&recipe, weights, &training)?,
        None => {
            let trained = train_network(&recipe, &training, test.as_ref(), &mut |at| {
                let test = at.test.map(|score| format!(", test {score}")).unwrap_or_default();
                let left = HumanDuration(Duration::try_from_secs_f64(at.seconds_left).unwrap_or_default());
                say(&format!("epoch {} of {}: loss {:.5}{test}, {left} left", at.epoch, at.epochs, at.loss));
            })?;
            if let Some(score) = trained.before_quantization {
                say(&format!("as trained: test {score}"));
            }
            trained.network
        }
    };
    if let Some(test) = &test {
        say(&format!("in fixed point: test {}", score(&network, test)?));
    }
    // Before it is written: one that cannot be evaluated is no result.
    describe(&network)?;
    network.save(&args.out)?;
    say(&format!("saved as {}", args.out.display()));
    Ok(())
}

pub(super) fn show(file: &Path) -> Result<(), CliError> {
    describe(&Network::load(file)?)
}

/// Layers, and how they are evaluated.
fn describe(network: &Network) -> Result<(), CliError> {
    let input = match network.input.image {
        Some([channels, height, width]) => format!("images of {height} × {width}, {channels} channel(s)"),
        None => format!("{} columns", network.input.width),
    };
    say(&format!("network {}: {input} → {}", network.name, network.classes.join(", ")));
    for layer in &network.layers {
        let Layer::Linear(linear) = layer else {
            say("  square");
            continue;
        };
        let what = match linear.shape {
            Shape::Dense => "linear".to_owned(),
            Shape::Conv(c) => format!("conv2d {0} × {0}, stride {1}, {2} maps", c.kernel, c.stride, c.channels),
        };
        let largest = linear.kernel().iter().map(|w| w.unsigned_abs()).max().unwrap_or(0);
        say(&format!(
            "  {what}: {} → {}, weights to {largest}/2^{}, outputs to {:.3}",
            linear.inputs, linear.outputs, linear.fraction_bits, linear.output_max
        ));
    }
    let server = SamplesServer::new(network, 1)?;
    let (terms, plan) = (server.terms(), server.plan());
    let samples = f64::from(terms.samples_max);
    say(&format!(
        "encrypted with {}: {} samples a batch, {:.1} kB up and {:.1} kB down a sample, inputs at 2^{:.1}, error of outputs about {:.1e}",
        terms.preset,
        terms.samples_max,
        f64::from(terms.inputs) * f64::from(terms.input_bytes) / samples / 1e3,
        f64::from(terms.outputs) * f64::from(terms.output_bytes) / samples / 1e3,
        plan.scale.log2(),
        plan.error,
    ));
    match OneSampleServer::new(network) {
        Ok(server) => {
            let (terms, plan) = (server.terms(), server.plan());
            let keys: f64 = terms.keys_bytes.iter().map(|bytes| f64::from(*bytes)).sum();
            say(&format!(
                "one sample at a time with {}: {:.1} kB up and {:.1} kB down, {:.1} MB of keys once, error of outputs about {:.1e}",
                terms.preset,
                f64::from(terms.inputs) * f64::from(terms.input_bytes) / 1e3,
                f64::from(terms.outputs) * f64::from(terms.output_bytes) / 1e3,
                keys / 1e6,
                plan.error,
            ));
        }
        Err(e) => say(&format!("one sample at a time: not this network: {e}")),
    }
    Ok(())
}
