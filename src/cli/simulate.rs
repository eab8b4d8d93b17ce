//! `spnn simulate`, `evaluate`, `predict`: every role as its own process on this machine.

use super::config::seconds;
use super::launch::{Launch, launch, watch_signals};
use super::progress::{Console, metrics};
use super::{Again, CliError, Overrides, Simulate};
use spnn::in_memory;
use spnn::party::PartyOptions;
use spnn::party::data::DataSource;
use spnn::pki::{self, Authority, Validity};
use spnn::protocol::{
    Checkpoints, FirstLayerKind, JoinOptions, Role, SessionConfig, SessionFile, SessionOverrides, Task, write_durable,
};
use spnn::sources::{has_label, sources, sources_in, split_columns};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The example that ships inside the binary.
const EXAMPLE: &str = include_str!("../../examples/breast_cancer/session.toml");
const EXAMPLE_FILES: [(&str, &str); 2] = [
    ("clinic.csv", include_str!("../../examples/breast_cancer/clinic.csv")),
    ("laboratory.csv", include_str!("../../examples/breast_cancer/laboratory.csv")),
];

/// A session file with what the command line changes, and where each party's data are.
pub(crate) struct Plan {
    pub(crate) file: SessionFile,
    pub(crate) sources: Vec<DataSource>,
}

impl Plan {
    /// Reads a session file, or the example. The example's data are written to `directory`.
    pub(crate) fn read(
        session: Option<&Path>,
        overrides: &Overrides,
        directory: Option<&Path>,
    ) -> Result<Self, CliError> {
        let (mut file, base) = match session {
            Some(path) => (SessionFile::read(path)?, path.parent().unwrap_or(Path::new(".")).to_owned()),
            None => {
                let base = directory.map_or_else(|| PathBuf::from("runs/example/data"), |d| d.join("data"));
                for (name, text) in EXAMPLE_FILES {
                    write(&base.join(name), text)?;
                }
                (SessionFile::parse(EXAMPLE, Path::new("the example in the binary"))?, base)
            }
        };
        if file.take_contract().is_some() {
            say("note: this session is a contract; its certificates are not here, so it is run without its terms");
        }
        file.override_with(&SessionOverrides {
            first_layer: overrides.first_layer.map(Into::into),
            ring_bits: overrides.ring_bits.as_ref().and_then(|b| b.parse().ok()),
            epochs: overrides.epochs,
            seed: overrides.seed,
        });
        if let Some(parties) = overrides.parties {
            split_columns(&mut file, &base, parties)?;
        }
        let sources = sources(&file.data, &base)?;
        Ok(Self { file, sources })
    }

    /// The name of the session, before anything is written.
    fn name(session: Option<&Path>) -> Result<String, CliError> {
        let file = match session {
            Some(path) => SessionFile::read(path)?,
            None => SessionFile::parse(EXAMPLE, Path::new("the example in the binary"))?,
        };
        Ok(file.name().to_owned())
    }
}

pub(crate) fn run(args: &Simulate, log: &str) -> Result<(), CliError> {
    if let Some(run_dir) = &args.resume {
        return resume(run_dir, seconds(args.checkpoint_every_s), log);
    }
    let session_file = args.session.as_deref();
    let run_dir = match &args.run_dir {
        Some(directory) => directory.clone(),
        None => {
            let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
            PathBuf::from("runs").join(format!("{}-{now}", Plan::name(session_file)?))
        }
    };
    if run_dir.join("session.toml").exists() {
        return Err(CliError::Usage(format!("{} holds a run already; name another --run-dir", run_dir.display())));
    }
    let mut plan = Plan::read(session_file, &args.overrides, Some(&run_dir))?;
    let session = plan.file.config()?;
    make_absolute(&mut plan)?;
    let text = toml::to_string(&plan.file).map_err(|e| CliError::Usage(e.to_string()))?;
    write(&run_dir.join("session.toml"), &text)?;
    if session.first_layer == FirstLayerKind::Plain {
        say("warning: first_layer = \"plain\" protects nothing: the server sees every party's product");
    }
    say(&format!(
        "session {}: {} parties, first layer {}, run directory {}",
        session.name,
        session.parties,
        session.first_layer,
        run_dir.display()
    ));
    if args.in_memory {
        in_one_process(&plan, &run_dir)?;
    } else {
        make_certificates(&run_dir, session.roles())?;
        launch(&Launch {
            run_dir: &run_dir,
            session: &session,
            sources: &plan.sources,
            task: Task::Train,
            report: &run_dir,
            scores: None,
            service: None,
            log,
            checkpoint_every: seconds(args.checkpoint_every_s),
            line: None,
            quiet: false,
            stop: watch_signals()?,
        })?;
    }
    if run_dir.join("report.html").exists() {
        say(&format!("report: {}", run_dir.join("report.html").display()));
    }
    Ok(())
}

/// Goes on with a run that was interrupted.
fn resume(run_dir: &Path, checkpoint_every: Duration, log: &str) -> Result<(), CliError> {
    let file = SessionFile::read(&run_dir.join("session.toml"))?;
    let session = file.config()?;
    let report = run_dir.join("report.html");
    if run_dir.join("report.json").exists() {
        // Written when every role has saved its part; a role that was killed just then has nothing left to do.
        for role in session.roles() {
            let directory = run_dir.join(role.to_string());
            let failed = |source| CliError::Protocol { me: role, source };
            Checkpoints::in_directory(&directory, role, &session).clear().map_err(failed)?;
        }
        say(&format!("this run is finished: {}", report.display()));
        return Ok(());
    }
    launch(&Launch {
        run_dir,
        session: &session,
        sources: &sources(&file.data, run_dir)?,
        task: Task::Train,
        report: run_dir,
        scores: None,
        service: None,
        log,
        checkpoint_every,
        line: None,
        quiet: false,
        stop: watch_signals()?,
    })?;
    if report.exists() {
        say(&format!("report: {}", report.display()));
    }
    Ok(())
}

/// The session of an earlier run, and where each party's rows are: what it was trained on, or one of `data` each.
pub(super) fn of_run(run_dir: &Path, data: &[PathBuf]) -> Result<(SessionConfig, Vec<DataSource>), CliError> {
    let file = SessionFile::read(&run_dir.join("session.toml"))?;
    let sources = match data {
        [] => sources(&file.data, run_dir)?,
        files => sources_in(&file.data, files)?,
    };
    Ok((file.config()?, sources))
}

/// Evaluates or predicts with the roles and model parts of an earlier run.
pub(crate) fn again(args: &Again, task: Task, log: &str) -> Result<(), CliError> {
    let (session, sources) = of_run(&args.run_dir, &args.data)?;
    if task == Task::Evaluate {
        let holder = &sources[usize::from(session.label_holder.0)];
        if !has_label(holder).map_err(spnn::sources::SourcesError::from)? {
            return Err(CliError::Usage(format!(
                "{} has no label column, which evaluating needs; use predict",
                holder.file
            )));
        }
    }
    let report = args.run_dir.join(match task {
        Task::Evaluate => "evaluation",
        Task::Train | Task::Predict | Task::Align | Task::Serve => "prediction",
    });
    let holder = args.run_dir.join(session.label_role().to_string());
    let scores = args.scores.clone().unwrap_or_else(|| holder.join(format!("{task}.csv")));
    launch(&Launch {
        run_dir: &args.run_dir,
        session: &session,
        sources: &sources,
        task,
        report: &report,
        scores: Some(&absolute(&scores)?),
        service: None,
        log,
        checkpoint_every: Duration::ZERO,
        line: None,
        quiet: false,
        stop: watch_signals()?,
    })?;
    say(&format!("scores, at the label holder: {}", scores.display()));
    Ok(())
}

fn in_one_process(plan: &Plan, run_dir: &Path) -> Result<(), CliError> {
    let session = plan.file.config()?;
    let join = |role: Role| JoinOptions {
        peer_timeout: Duration::from_secs(600),
        allow_unprotected: true,
        ..JoinOptions::new(Task::Train, run_dir.join(role.to_string()))
    };
    let parties: Vec<PartyOptions> = (session.party_roles().zip(&plan.sources))
        .map(|(role, data)| PartyOptions::new(join(role), data.clone()))
        .collect();
    let mut console = Console::new(&session, Task::Train, run_dir);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::File { file: "tokio".into(), source })?;
    let (coordinator, server) = (join(Role::Coordinator), join(Role::Server));
    let protocol = |me| move |source| CliError::Protocol { me, source };
    let ends = runtime
        .block_on(in_memory::run(&session, &coordinator, &server, &parties, PIPE, &mut console))
        .map_err(protocol(Role::Coordinator))?;
    // A party that fails is the root of what the others see.
    for (me, party) in session.party_roles().zip(ends.parties) {
        party.map_err(|source| CliError::Party { me, source })?;
    }
    ends.server.map_err(protocol(Role::Server))?;
    let record = ends.coordinator.map_err(protocol(Role::Coordinator))?;
    console.finish();
    if let Some(test) = record.and_then(|r| r.test) {
        say(&format!("test: {}", metrics(&test)));
    }
    Ok(())
}

/// Pipes of one process; large enough that a batch is a few wake-ups.
const PIPE: usize = 256 << 10;

/// Throw-away certificates: an authority, and a directory for each role.
pub(super) fn make_certificates(run_dir: &Path, roles: impl Iterator<Item = Role>) -> Result<(), CliError> {
    let authority = Authority::in_directory(&run_dir.join("pki"));
    pki::init(&authority, "simulation", Validity::days(365))?;
    for role in roles {
        pki::issue(&authority, &run_dir.join(role.to_string()), role, "simulation", Validity::days(365), None)?;
    }
    Ok(())
}

/// The session file is kept elsewhere than the one that was read, so files are named absolutely.
fn make_absolute(plan: &mut Plan) -> Result<(), CliError> {
    for (party, source) in plan.file.data.parties.iter_mut().zip(&mut plan.sources) {
        source.file.try_map(absolute)?;
        party.file = source.file.paths().first().cloned();
    }
    Ok(())
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|source| CliError::File { file: path.to_owned(), source })
}

pub(super) fn write(file: &Path, text: &str) -> Result<(), CliError> {
    write_durable(file, text.as_bytes()).map_err(|source| CliError::Protocol { me: Role::Coordinator, source })
}

/// One line for the person at the terminal.
#[expect(clippy::print_stdout, reason = "what this command is for")]
pub(super) fn say(line: &str) {
    println!("{line}");
}
