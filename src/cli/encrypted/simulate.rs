//! `spnn encrypted simulate`.

use super::super::simulate::{absolute, make_certificates, say, write};
use super::config::Config;
use super::query::ClientReport;
use super::serve::ServerReport;
use super::{CliError, Samples, Simulate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spnn::protocol::Role;
use spnn::protocol::message::Packing;
use spnn::protocol::transport::TransportTuning;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The example that ships inside the binary.
const NETWORK: &[u8] = include_bytes!("../../../examples/digits/network.safetensors");
const DIGITS: &str = include_str!("../../../examples/digits/test.csv");

const CLIENT: Role = Role::Party(spnn::protocol::PartyId(0));
/// Loopback carries packets of 64 KB.
const LOOPBACK_MTU: u16 = 60_000;
const POLL: Duration = Duration::from_millis(20);

/// A server process; ends with this one.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn run(args: &Simulate, log: &str) -> Result<(), CliError> {
    let run_dir = match &args.run_dir {
        Some(directory) => directory.clone(),
        None => PathBuf::from("runs").join(format!("encrypted-{}", jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S"))),
    };
    if run_dir.join("server").exists() {
        return Err(CliError::Usage(format!("{} holds a run already; name another --run-dir", run_dir.display())));
    }
    make_certificates(&run_dir, [Role::Server, CLIENT].into_iter())?;
    let (network, data, samples) = match (&args.network, &args.data) {
        (Some(network), Some(data)) => (absolute(network)?, absolute(data)?, args.samples.clone()),
        _ => {
            let (network, data) = (run_dir.join("network.safetensors"), run_dir.join("digits.csv"));
            fs::write(&network, NETWORK).map_err(at(&network))?;
            write(&data, DIGITS)?;
            let (id, label) = (Some("id".to_owned()), Some("digit".to_owned()));
            let samples = Samples { labels: None, label, id, compare: Some(network.clone()) };
            (absolute(&network)?, absolute(&data)?, samples)
        }
    };
    let server_dir = run_dir.join(Role::Server.to_string());
    let config = Config {
        network: Some(network),
        listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        clients: vec![CLIENT],
        packing: if args.one_sample { Packing::OneSample } else { Packing::SamplePerSlot },
        ..of(Role::Server)
    };
    let (mut server, address) = wait_for_address(start_server(&server_dir, &config, log)?, &server_dir)?;
    let client_dir = run_dir.join(CLIENT.to_string());
    let file = write_config(&client_dir, &Config { server: Some(address), ..of(CLIENT) })?;
    let mut command = spnn()?;
    command.args(["encrypted", "query", "--log", log, "--config"]).arg(&file).arg("--data").arg(&data);
    for (option, value) in [("--label", &samples.label), ("--id", &samples.id)] {
        if let Some(value) = value {
            command.arg(option).arg(value);
        }
    }
    for (option, value) in [("--labels", &samples.labels), ("--compare", &samples.compare)] {
        if let Some(value) = value {
            command.arg(option).arg(absolute(value)?);
        }
    }
    let status = command.stdin(Stdio::null()).status().map_err(at(Path::new("spnn")))?;
    if !status.success() {
        let code = status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1);
        return Err(CliError::Roles {
            code,
            message: format!("the client failed; the server's log: {}", server.log.display()),
        });
    }
    let id = i32::try_from(server.child.id()).unwrap_or_default();
    let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
    server.child.wait().map_err(at(&server.log))?;
    let reports = (
        read::<ServerReport>(&server_dir.join("report.json"))?,
        read::<ClientReport>(&client_dir.join("report.json"))?,
    );
    summary(&reports.0, &reports.1);
    Ok(())
}

/// What both sides took.
fn summary(server: &ServerReport, client: &ClientReport) {
    let samples = client.samples as f64;
    let an_hour = |seconds: f64| samples / seconds.max(1e-9) * 3600.0 / 1e6;
    say(&format!(
        "predictions an hour: {:.2} million end to end; per core: server {:.2} million ({:.2} s), client {:.2} million ({:.2} s)",
        an_hour(client.seconds),
        an_hour(server.cpu_seconds),
        server.cpu_seconds,
        an_hour(client.cpu_seconds),
        client.cpu_seconds,
    ));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    say(&format!(
        "peak memory: server {:.0} MiB, client {:.0} MiB",
        mib(server.peak_rss_bytes),
        mib(client.peak_rss_bytes)
    ));
}

fn of(role: Role) -> Config {
    Config {
        certificate: format!("{role}.pem").into(),
        key: format!("{role}.key").into(),
        passphrase_file: None,
        authority: "../pki/ca.pem".into(),
        revoked: None,
        directory: ".".into(),
        network: None,
        packing: Packing::SamplePerSlot,
        listen: None,
        clients: Vec::new(),
        clients_max: 1,
        server: None,
        peers: std::collections::BTreeMap::new(),
        peer_timeout_s: 600.0,
        threads: None,
        transport: TransportTuning { mtu_max: LOOPBACK_MTU, ..TransportTuning::default() },
    }
}

fn write_config(directory: &Path, config: &Config) -> Result<PathBuf, CliError> {
    let file = directory.join("config.toml");
    let text = toml::to_string(config).map_err(|e| CliError::Config { file: file.clone(), reason: e.to_string() })?;
    write(&file, &text)?;
    Ok(file)
}

fn spnn() -> Result<Command, CliError> {
    let program = std::env::current_exe().map_err(at(Path::new("spnn")))?;
    Ok(Command::new(program))
}

fn start_server(directory: &Path, config: &Config, log: &str) -> Result<Server, CliError> {
    let file = write_config(directory, config)?;
    let path = directory.join("serve.log");
    let output = File::create(&path).map_err(at(&path))?;
    let mut command = spnn()?;
    command.args(["encrypted", "serve", "--log", log, "--config"]).arg(&file);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn().map_err(at(&path))?;
    Ok(Server { child, log: path })
}

/// Waits until the server says where it is.
fn wait_for_address(mut server: Server, directory: &Path) -> Result<(Server, String), CliError> {
    loop {
        if let Ok(address) = fs::read_to_string(directory.join("address")) {
            return Ok((server, address));
        }
        if let Some(status) = server.child.try_wait().map_err(at(&server.log))? {
            let said = fs::read_to_string(&server.log).unwrap_or_default();
            let code = status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1);
            let said = said.rsplit("error: ").next().unwrap_or_default().trim().to_owned();
            return Err(CliError::Roles { code, message: format!("server: {said}\n  log: {}", server.log.display()) });
        }
        std::thread::sleep(POLL);
    }
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, CliError> {
    let text = fs::read_to_string(file).map_err(at(file))?;
    serde_json::from_str(&text).map_err(|e| CliError::Config { file: file.to_owned(), reason: e.to_string() })
}

fn at(file: &Path) -> impl FnOnce(std::io::Error) -> CliError {
    let file = file.to_owned();
    move |source| CliError::File { file, source }
}
