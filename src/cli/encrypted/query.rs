//! `spnn encrypted query`.

use super::super::role::{network_runtime, refuse_core_dumps};
use super::super::simulate::say;
use super::config::Config;
use super::{CliError, Query};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ndarray::{Array2, ArrayView1, s};
use serde::{Deserialize, Serialize};
use spnn::encrypted::{AskError, Client, Description, Network, Rows, score_outputs};
use spnn::nn::Loss;
use spnn::protocol::inference::{Answer, Upload, ask, greet};
use spnn::protocol::message::InferenceTerms;
use spnn::protocol::transport::{QuicTransport, Transport};
use spnn::protocol::usage::{cpu_seconds, peak_rss_bytes};
use spnn::protocol::{Cause, Channel, Ending, ProtocolError, Role, write_durable};
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What a client has asked and got, in `report.json` in its directory.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct ClientReport {
    /// Name of the network.
    pub(super) network: String,
    /// Samples that were asked about.
    pub(super) samples: u64,
    /// From the first ciphertext to the last answer.
    pub(super) seconds: f64,
    /// Processor time of the process.
    pub(super) cpu_seconds: f64,
    /// Largest resident set.
    pub(super) peak_rss_bytes: u64,
    /// Keys and ciphertexts sent, in bytes.
    pub(super) bytes_up: u64,
    /// Ciphertexts received, in bytes.
    pub(super) bytes_down: u64,
    /// How good the answers are, if there were labels.
    pub(super) score: Option<String>,
    /// Samples whose prediction differs from that in the clear, if there was a network to compare with.
    pub(super) different: Option<u64>,
    /// Largest difference of an output from that in the clear.
    pub(super) difference_max: Option<f64>,
}

/// Ciphertexts that wait to be sent: enough to keep the connection busy.
const UPLOADS_WAITING: usize = 64;
/// Batches whose answers wait to be opened.
const ANSWERS_WAITING: usize = 2;
/// An answer may wait for those of other clients.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) fn run(args: &Query) -> Result<(), CliError> {
    let file = &args.of.config;
    let config = Config::read(file)?;
    let (identity, mut options) = config.role("query", |role| matches!(role, Role::Party(_)))?;
    let me = identity.role();
    options.dial.insert(Role::Server, config.need(file, config.server.clone(), "server")?);
    options.peer_timeout = options.peer_timeout.max(ANSWER_TIMEOUT);
    let wait = super::super::config::seconds(config.peer_timeout_s);
    refuse_core_dumps();
    let shown = |source| CliError::Protocol { me, source };
    let (report, table) = network_runtime()?.block_on(async {
        let mut transport = QuicTransport::new(identity, options).map_err(shown)?;
        let asked = async {
            let mut channel = transport.connect(Role::Server, wait).await.map_err(shown)?;
            session(&mut channel, args, config.threads(), me).await
        };
        let asked = asked.await;
        let ending = match &asked {
            Ok(_) => Ending { cause: Cause::Done, culprit: me },
            Err(CliError::Protocol { source, .. }) => source.ending(me),
            Err(_) => Ending { cause: Cause::Data, culprit: me },
        };
        transport.end(ending);
        transport.wait_closed(Duration::from_secs(2)).await;
        asked
    })?;
    let scores = args.scores.clone().unwrap_or_else(|| config.directory.join("scores.csv"));
    write_durable(&scores, table.as_bytes()).map_err(shown)?;
    let text = serde_json::to_string_pretty(&report).unwrap_or_default();
    write_durable(&config.directory.join("report.json"), text.as_bytes()).map_err(shown)?;
    say(&report.summary());
    say(&format!("scores: {}", scores.display()));
    Ok(())
}

/// Asks about all samples; gives the report and the table of answers.
async fn session(
    channel: &mut Channel,
    args: &Query,
    threads: usize,
    me: Role,
) -> Result<(ClientReport, String), CliError> {
    let shown = |source| CliError::Protocol { me, source };
    let samples = &args.samples;
    let terms = greet(channel).await.map_err(shown)?;
    let client = Arc::new(Client::new(&terms)?);
    let rows = Arc::new(samples.read(&args.data, &client.description().input)?);
    let compare = samples.compare.as_deref().map(Network::load).transpose()?;
    say(&format!("{} answers: {} samples to ask about", terms.name, rows.len()));
    let started = Instant::now();
    let outputs = exchange(channel, &terms, &client, &rows, threads).await.map_err(|e| match e {
        Failed::Protocol(source) => shown(source),
        Failed::Ask(e) => e.into(),
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let batches = rows.len().div_ceil(client.samples_max()) as u64;
    let bytes = |count: u32, length: u32| batches * u64::from(count) * u64::from(length);
    let keys_bytes: u64 = terms.keys_bytes.iter().map(|bytes| u64::from(*bytes)).sum();
    let description = client.description();
    let score = match rows.labels {
        Some(_) if samples.has_labels() => {
            Some(score_outputs(&description.classes, description.loss, outputs.view(), &rows)?.to_string())
        }
        _ => None,
    };
    let mut report = ClientReport {
        network: terms.name.clone(),
        samples: rows.len() as u64,
        seconds,
        cpu_seconds: cpu_seconds(),
        peak_rss_bytes: peak_rss_bytes(),
        bytes_up: keys_bytes + bytes(terms.inputs, terms.input_bytes),
        bytes_down: bytes(terms.outputs, terms.output_bytes),
        score,
        ..ClientReport::default()
    };
    if let Some(network) = compare {
        let clear = network.predict_rows(rows.features.view())?;
        if clear.dim() != outputs.dim() {
            let (expected, found) = (format!("{} outputs", outputs.ncols()), clear.ncols().to_string());
            return Err(AskError::Terms { what: "the network to compare with", expected, found }.into());
        }
        let pairs = || outputs.rows().into_iter().zip(clear.rows());
        let differs = |(a, b): &(ArrayView1<'_, f64>, ArrayView1<'_, f64>)| {
            predicted(description, *a) != predicted(description, *b)
        };
        report.different = Some(pairs().filter(differs).count() as u64);
        report.difference_max = Some((&outputs - &clear).iter().fold(0.0, |m: f64, x| m.max(x.abs())));
    }
    Ok((report, table(description, &rows, &outputs)))
}

/// Why an exchange failed.
enum Failed {
    Protocol(ProtocolError),
    Ask(AskError),
}

/// Encrypts, sends, receives and opens at once.
async fn exchange(
    channel: &mut Channel,
    terms: &InferenceTerms,
    client: &Arc<Client>,
    rows: &Arc<Rows>,
    threads: usize,
) -> Result<Array2<f64>, Failed> {
    let keys = client.keys().map_err(Failed::Ask)?;
    let (to_send, uploads) = mpsc::channel(UPLOADS_WAITING);
    let (answers, mut to_open) = mpsc::channel(ANSWERS_WAITING);
    let (encrypting, encrypted) = (Arc::clone(client), Arc::clone(rows));
    let encrypting = tokio::task::spawn_blocking(move || {
        for start in (0..encrypted.len()).step_by(encrypting.samples_max()) {
            let end = encrypted.len().min(start + encrypting.samples_max());
            let samples = u32::try_from(end - start).unwrap_or(u32::MAX);
            if to_send.blocking_send(Upload::Batch { samples }).is_err() {
                break;
            }
            let batch = encrypted.features.slice(s![start..end, ..]);
            encrypting.encrypt(batch, threads, |bytes| to_send.blocking_send(Upload::Ciphertext(bytes)).is_ok())?;
        }
        Ok::<(), AskError>(())
    });
    let (opening, count) = (Arc::clone(client), rows.len());
    let opening = tokio::task::spawn_blocking(move || {
        let bar = bar(count);
        let mut outputs = Array2::zeros((count, opening.description().classes.len()));
        let mut start = 0;
        while let Some(Answer(answer)) = to_open.blocking_recv() {
            let end = count.min(start + opening.samples_max());
            outputs.slice_mut(s![start..end, ..]).assign(&opening.open(&answer, end - start)?);
            start = end;
            bar.set_position(start as u64);
        }
        bar.finish_and_clear();
        Ok::<_, AskError>(outputs)
    });
    let asked = ask(channel, terms, &keys, uploads, answers).await;
    // What could not be encrypted or opened is why the rest came to an end.
    let joined = |e: tokio::task::JoinError| Failed::Ask(AskError::Description(e.to_string()));
    encrypting.await.map_err(joined)?.map_err(Failed::Ask)?;
    let outputs = opening.await.map_err(joined)?.map_err(Failed::Ask)?;
    asked.map_err(Failed::Protocol)?;
    Ok(outputs)
}

fn bar(samples: usize) -> ProgressBar {
    let target =
        if std::io::stdout().is_terminal() { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(samples as u64), target);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} samples, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// What the outputs of one sample say.
fn predicted(description: &Description, outputs: ArrayView1<'_, f64>) -> String {
    match description.loss {
        Loss::SoftmaxCrossEntropy => {
            let first = (0, f64::NEG_INFINITY);
            let largest =
                outputs.iter().enumerate().fold(first, |best, (at, x)| if *x > best.1 { (at, *x) } else { best });
            description.classes[largest.0].clone()
        }
        Loss::BinaryCrossEntropy => u8::from(outputs[0] > 0.0).to_string(),
        Loss::SquaredError => format!("{:.4}", outputs[0]),
    }
}

/// One line for each sample. Outputs are rounded to what the network's training meant anything by: the rest is noise that
/// depends on the client's key.
fn table(description: &Description, rows: &Rows, outputs: &Array2<f64>) -> String {
    let mut text = String::from("id,predicted");
    match description.loss {
        Loss::SoftmaxCrossEntropy => text.extend(description.classes.iter().map(|c| format!(",{}", quoted(c)))),
        Loss::BinaryCrossEntropy => text.push_str(",probability"),
        Loss::SquaredError => {}
    }
    text.push('\n');
    for (id, outputs) in rows.ids.iter().zip(outputs.rows()) {
        let _ = write!(text, "{},{}", quoted(id), predicted(description, outputs));
        match description.loss {
            Loss::SoftmaxCrossEntropy => text.extend(outputs.iter().map(|x| format!(",{x:.3}"))),
            Loss::BinaryCrossEntropy => text.push_str(&format!(",{:.3}", 1.0 / (1.0 + (-outputs[0]).exp()))),
            Loss::SquaredError => {}
        }
        text.push('\n');
    }
    text
}

/// A value as a field of CSV.
fn quoted(value: &str) -> String {
    if value.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}

impl ClientReport {
    fn summary(&self) -> String {
        let per = |bytes: u64| bytes as f64 / self.samples.max(1) as f64 / 1e3;
        let mut text = format!(
            "{} samples in {:.2} s, {:.1} kB up and {:.1} kB down a sample, {:.2} s of this client's processor",
            self.samples,
            self.seconds,
            per(self.bytes_up),
            per(self.bytes_down),
            self.cpu_seconds
        );
        if let Some(score) = &self.score {
            let _ = write!(text, "\n{score}");
        }
        if let (Some(different), Some(difference)) = (self.different, self.difference_max) {
            let _ = write!(
                text,
                "\ncompared with the network in the clear: {different} predictions differ; largest difference of an output {difference:.1e}"
            );
        }
        text
    }
}
