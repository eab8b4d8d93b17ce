//! Starts every role of a session as a process, waits for them, and says what went wrong.

use super::CliError;
use super::config::{RoleConfig, ServiceConfig};
use super::progress::metrics;
use super::role::asked_to_stop;
use super::simulate::say;
use spnn::coordinator::SessionRecord;
use spnn::experiment::{Line, PartyLine};
use spnn::party::data::DataSource;
use spnn::protocol::transport::TransportTuning;
use spnn::protocol::{Cause, Fingerprint, FirstLayerKind, Role, SessionConfig, Task, inspect_certificate};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// One session of a simulation.
pub(crate) struct Launch<'a> {
    /// Directories and certificates of the roles are in here.
    pub(crate) run_dir: &'a Path,
    pub(crate) session: &'a SessionConfig,
    pub(crate) sources: &'a [DataSource],
    pub(crate) task: Task,
    /// Where the coordinator writes its report.
    pub(crate) report: &'a Path,
    /// Where the label holder writes scores.
    pub(crate) scores: Option<&'a Path>,
    /// Where the label holder serves predictions.
    pub(crate) service: Option<ServiceConfig>,
    pub(crate) log: &'a str,
    /// How often everyone makes a checkpoint.
    pub(crate) checkpoint_every: Duration,
    /// Emulated access lines of the parties; without them packets go straight over loopback.
    pub(crate) line: Option<Line>,
    /// Show neither progress nor result.
    pub(crate) quiet: bool,
    /// Set when this process is asked to stop.
    pub(crate) stop: Arc<AtomicBool>,
}

/// Loopback carries packets of 64 KB.
const LOOPBACK_MTU: u16 = 60_000;
/// The others have this long to end by themselves once a role has failed.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

struct Process {
    role: Role,
    child: Child,
    log: PathBuf,
    code: Option<u8>,
}

/// Runs the session and shows its result.
pub(crate) fn launch(launch: &Launch<'_>) -> Result<(), CliError> {
    let mut processes = Vec::new();
    let mut lines = Vec::new();
    // Of an earlier service.
    let _ = fs::remove_file(launch.run_dir.join(launch.session.label_role().to_string()).join("service"));
    let stop = &launch.stop;
    let result = start_all(launch, &mut processes, &mut lines)
        .and_then(|()| if launch.service.is_some() { say_where(launch, &mut processes) } else { Ok(()) })
        .and_then(|()| watch(&mut processes, launch));
    // On any error: nothing this command started may outlive it.
    for process in processes.iter_mut().filter(|p| p.code.is_none()) {
        let _ = process.child.kill();
        let _ = process.child.wait();
    }
    result?;
    if launch.quiet {
        return Ok(());
    }
    if stop.load(Ordering::Relaxed) && launch.task == Task::Train && !launch.report.join("report.json").exists() {
        say(&format!("stopped; to go on: spnn simulate --resume {}", launch.run_dir.display()));
        return Ok(());
    }
    let text = fs::read_to_string(launch.report.join("report.json")).unwrap_or_default();
    if let Ok(SessionRecord { test: Some(test), wall_seconds, .. }) = serde_json::from_str(&text) {
        say(&format!("test: {}  ({wall_seconds:.1} s in all)", metrics(&test)));
    }
    Ok(())
}

fn start_all(launch: &Launch<'_>, processes: &mut Vec<Process>, lines: &mut Vec<PartyLine>) -> Result<(), CliError> {
    let pins = launch
        .session
        .party_roles()
        .map(|role| {
            let certificate = launch.run_dir.join(role.to_string()).join(format!("{role}.pem"));
            let (_, pin) =
                inspect_certificate(&certificate).map_err(|source| CliError::Protocol { me: role, source })?;
            Ok((role, pin))
        })
        .collect::<Result<BTreeMap<_, _>, CliError>>()?;
    let coordinator = start_listener(launch, Role::Coordinator, None, processes)?;
    let server = start_listener(launch, Role::Server, Some(&coordinator), processes)?;
    for (role, source) in launch.session.party_roles().zip(launch.sources) {
        let peers: BTreeMap<Role, Fingerprint> =
            pins.iter().filter(|(r, _)| **r != role).map(|(r, p)| (*r, *p)).collect();
        let (mut coordinator, mut server) = (coordinator.clone(), server.clone());
        if let Some(line) = launch.line {
            let party_line = PartyLine::open(line).map_err(at(Path::new("UDP socket")))?;
            for listener in [&mut coordinator, &mut server] {
                let relayed = listener.parse().map_err(std::io::Error::other).and_then(|a| party_line.relay(a));
                *listener = relayed.map_err(at(Path::new("UDP socket")))?.to_string();
            }
            lines.push(party_line);
        }
        let config = RoleConfig {
            coordinator: Some(coordinator),
            server: Some(server),
            data: Some(source.clone()),
            peers,
            service: launch.service.clone().filter(|_| role == launch.session.label_role()),
            ..config(launch, role)
        };
        let scores = launch.scores.filter(|_| role == launch.session.label_role());
        processes.push(start(launch, role, &config, scores)?);
    }
    Ok(())
}

/// Starts a role that others dial, and waits until it says where.
fn start_listener(
    launch: &Launch<'_>,
    role: Role,
    coordinator: Option<&String>,
    processes: &mut Vec<Process>,
) -> Result<String, CliError> {
    let config = RoleConfig {
        listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        coordinator: coordinator.cloned(),
        report: (role == Role::Coordinator).then(|| launch.report.to_owned()),
        ..config(launch, role)
    };
    let file = launch.run_dir.join(role.to_string()).join("address");
    let _ = fs::remove_file(&file);
    let mut process = start(launch, role, &config, None)?;
    loop {
        if let Ok(address) = fs::read_to_string(&file) {
            processes.push(process);
            return Ok(address);
        }
        if poll(&mut process)?.is_some() {
            return Err(failure(&[process]));
        }
        std::thread::sleep(POLL);
    }
}

/// Waits until the label holder says where it serves predictions, and tells.
fn say_where(launch: &Launch<'_>, processes: &mut [Process]) -> Result<(), CliError> {
    let file = launch.run_dir.join(launch.session.label_role().to_string()).join("service");
    loop {
        if let Ok(address) = fs::read_to_string(&file) {
            say(&format!("scores: POST http://{address}/v1/scores; description: http://{address}/v1/openapi.json"));
            return Ok(());
        }
        for process in &mut *processes {
            if poll(process)?.is_some() || launch.stop.load(Ordering::Relaxed) {
                // What happened is for who watches them.
                return Ok(());
            }
        }
        std::thread::sleep(POLL);
    }
}

fn config(launch: &Launch<'_>, role: Role) -> RoleConfig {
    RoleConfig {
        session: "../session.toml".into(),
        certificate: format!("{role}.pem").into(),
        key: format!("{role}.key").into(),
        authority: "../pki/ca.pem".into(),
        passphrase_file: None,
        revoked: None,
        require_contract: false,
        audit: None,
        signatures: None,
        directory: ".".into(),
        listen: None,
        coordinator: None,
        server: None,
        report: None,
        monitor: None,
        service: None,
        allow_unprotected: launch.session.first_layer == FirstLayerKind::Plain,
        // This command watches the processes itself, and ends all when one is gone. Reading a large file and a batch under
        // Paillier can take minutes.
        join_timeout_s: 3600.0,
        peer_timeout_s: 3600.0,
        rejoin_timeout_s: 0.0,
        checkpoint_every_s: launch.checkpoint_every.as_secs_f64(),
        peers: BTreeMap::new(),
        dial: BTreeMap::new(),
        accept: Vec::new(),
        data: None,
        // A line carries packets as the internet does.
        transport: match launch.line {
            Some(_) => TransportTuning::default(),
            None => TransportTuning { mtu_max: LOOPBACK_MTU, ..TransportTuning::default() },
        },
    }
}

fn start(launch: &Launch<'_>, role: Role, config: &RoleConfig, scores: Option<&Path>) -> Result<Process, CliError> {
    let directory = std::path::absolute(launch.run_dir.join(role.to_string())).map_err(at(launch.run_dir))?;
    let file = directory.join("config.toml");
    let mut config = config.clone();
    if let Some(report) = &mut config.report {
        *report = std::path::absolute(&*report).map_err(at(report))?;
    }
    let text = toml::to_string(&config).map_err(|e| CliError::Config { file: file.clone(), reason: e.to_string() })?;
    fs::write(&file, text).map_err(at(&file))?;
    let log = directory.join(format!("{}.log", launch.task));
    let output = File::create(&log).map_err(at(&log))?;
    let program = std::env::current_exe().map_err(at(Path::new("spnn")))?;
    let name = match role {
        Role::Coordinator => "coordinator",
        Role::Server => "server",
        Role::Party(_) => "party",
    };
    let mut command = Command::new(&program);
    command.arg(name).arg("--config").arg(&file).args(["--task", &launch.task.to_string(), "--log", launch.log]);
    if let Some(scores) = scores {
        command.arg("--scores").arg(scores);
    }
    // The coordinator's standard output is the progress display; everything else is in the role's log.
    let shown = if role == Role::Coordinator && !launch.quiet { Stdio::inherit() } else { Stdio::null() };
    let child = command.stdin(Stdio::null()).stdout(shown).stderr(output).spawn().map_err(at(&program))?;
    Ok(Process { role, child, log, code: None })
}

/// What is set when this process gets SIGTERM or SIGINT.
pub(super) fn watch_signals() -> Result<Arc<AtomicBool>, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::File { file: "tokio".into(), source })?;
    let stop = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&stop);
    std::thread::spawn(move || {
        runtime.block_on(asked_to_stop());
        watched.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}

/// Waits for all; once one has failed, the others have a while to end by themselves. When this process is asked to
/// stop, so are they.
fn watch(processes: &mut [Process], launch: &Launch<'_>) -> Result<(), CliError> {
    let mut failed: Option<Instant> = None;
    let mut asked = false;
    loop {
        if launch.stop.load(Ordering::Relaxed) && !asked {
            asked = true;
            if !launch.quiet && launch.task == Task::Train {
                say("asked to stop: every role finishes its batch and makes a checkpoint");
            }
            for process in processes.iter().filter(|p| p.code.is_none()) {
                let id = i32::try_from(process.child.id()).unwrap_or_default();
                // One that has just ended has nothing to stop.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
            }
        }
        for process in processes.iter_mut() {
            // When all stop, the last ones may find that the others are gone.
            let may = if asked { Cause::PeerGone.code() } else { Cause::Done.code() };
            if poll(process)?.is_some_and(|code| code != 0 && code != may) {
                failed.get_or_insert_with(Instant::now);
            }
        }
        let all_ended = processes.iter().all(|p| p.code.is_some());
        let waited_enough = failed.is_some_and(|since| since.elapsed() > GRACE);
        if (all_ended || waited_enough) && failed.is_some() {
            return Err(failure(processes));
        }
        if all_ended {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

fn poll(process: &mut Process) -> Result<Option<u8>, CliError> {
    if process.code.is_none() {
        let status = process.child.try_wait().map_err(at(&process.log))?;
        // A signal leaves no code; to the others its role is gone.
        process.code = status.map(|s| s.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(Cause::PeerGone.code()));
    }
    Ok(process.code)
}

/// What each failed role said, and the exit code of the one at the root: a role that failed by itself goes before
/// those that only saw another one go.
fn failure(processes: &[Process]) -> CliError {
    let mut failed: Vec<&Process> = processes.iter().filter(|p| p.code.is_some_and(|c| c != 0)).collect();
    let gone = Cause::PeerGone.code();
    let heard = |p: &Process| last_words(&p.log).contains(" ended the session in ");
    failed.sort_by_key(|p| (p.code == Some(gone), heard(p)));
    let said = failed.iter().map(|p| format!("{}: {}\n  log: {}", p.role, last_words(&p.log), p.log.display()));
    let message = said.collect::<Vec<_>>().join("\n");
    CliError::Roles { code: failed.first().and_then(|p| p.code).unwrap_or(gone), message }
}

/// The error that a role printed last.
fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    match text.rfind("error: ") {
        Some(at) => text[at + "error: ".len()..].trim_end().to_owned(),
        None => "ended without an error message".into(),
    }
}

fn at(file: &Path) -> impl FnOnce(std::io::Error) -> CliError {
    let file = file.to_owned();
    move |source| CliError::File { file, source }
}
