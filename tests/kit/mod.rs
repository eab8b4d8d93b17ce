//! What the integration tests share: a stage with certificates, configurations and data, and processes on it.

#![allow(dead_code, reason = "every test binary uses its own part of the kit")]

pub(crate) mod allocations;
pub(crate) mod link;
pub(crate) mod proxy;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use toml::{Table, Value};

/// The binary under test.
pub(crate) const SPNN: &str = env!("CARGO_BIN_EXE_spnn");

/// Exit codes as documented.
pub(crate) const DONE: i32 = 0;
pub(crate) const CONFIGURATION: i32 = 2;
pub(crate) const DATA: i32 = 3;
pub(crate) const NETWORK: i32 = 4;
pub(crate) const PROTOCOL: i32 = 5;
pub(crate) const STORAGE: i32 = 74;
pub(crate) const PEER_GONE: i32 = 75;

/// How long a process may take to end by itself. Against hanging only; nothing is asserted about speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A line for every message, beside what is logged anyway.
pub(crate) const TRACE: &str = "info,spnn_protocol::channel=trace";

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A script of a document, with the binary under test on its path.
pub(crate) fn shell(script: &str, directory: &Path) -> Command {
    let path = format!("{}:{}", Path::new(SPNN).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command
        .args(["-euc", script])
        .current_dir(directory)
        .env("PATH", path)
        .env("SPNN_SOURCE", env!("CARGO_MANIFEST_DIR"))
        .env_remove("SPNN_PASSPHRASE");
    command
}

/// Runs `spnn` to its end.
pub(crate) fn spnn(args: &[&str]) -> Said {
    let output = Command::new(SPNN).args(args).env_remove("SPNN_LOG").stdin(Stdio::null()).output().unwrap();
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `spnn`, which must succeed.
pub(crate) fn spnn_ok(args: &[&str]) -> Said {
    let said = spnn(args);
    assert_eq!(said.code, DONE, "spnn {}\n{}{}", args.join(" "), said.out, said.err);
    said
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Numbers that look random and are the same everywhere (Steele, Lea, Flood: SplitMix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `±1`.
    pub(crate) fn real(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

/// A session between roles that run as processes, each from its own directory with its own certificate.
///
/// Tests change tables and files before they start a role.
pub(crate) struct Stage {
    directory: tempfile::TempDir,
    /// The session file of all roles.
    pub(crate) session: Table,
    /// The configuration of each role, by its name.
    pub(crate) configs: BTreeMap<String, Table>,
}

impl Stage {
    /// Certificates, configurations and data of `parties` parties with `rows` rows of three features each. Party 0 has
    /// the labels.
    pub(crate) fn new(parties: u16, rows: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let pki = root.join("pki");
        spnn_ok(&["pki", "init", "--dir", arg(&pki)]);
        let names: Vec<String> = ["coordinator".into(), "server".into()]
            .into_iter()
            .chain((0..parties).map(|i| format!("party-{i}")))
            .collect();
        let pins: BTreeMap<String, String> = names
            .iter()
            .map(|name| {
                let said =
                    spnn_ok(&["pki", "issue", "--role", name, "--dir", arg(&pki), "--out", arg(&root.join(name))]);
                (name.clone(), said.out.split_whitespace().last().unwrap().to_owned())
            })
            .collect();
        let mut configs = BTreeMap::new();
        for name in &names {
            let mut config = table(&format!(
                r#"
                session = "../session.toml"
                certificate = "{name}.pem"
                key = "{name}.key"
                authority = "../pki/ca.pem"
                join_timeout_s = 20.0
                peer_timeout_s = 20.0
                rejoin_timeout_s = 0.0
                transport = {{ idle_timeout_s = 10.0 }}
                "#
            ));
            match name.strip_prefix("party-") {
                None => {
                    config.insert("listen".into(), "127.0.0.1:0".into());
                }
                Some(number) => {
                    let peers = pins.iter().filter(|(peer, _)| *peer != name && peer.starts_with("party-"));
                    let peers: Table = peers.map(|(peer, pin)| (peer.clone(), Value::from(pin.as_str()))).collect();
                    config.insert("peers".into(), peers.into());
                    let mut data = table("file = \"data.csv\"\nid = \"id\"");
                    if number == "0" {
                        data.insert("label".into(), "y".into());
                    }
                    config.insert("data".into(), data.into());
                    fs::write(root.join(name).join("data.csv"), csv(number.parse().unwrap(), rows)).unwrap();
                }
            }
            configs.insert(name.clone(), config);
        }
        let sections: Vec<String> = (0..parties).map(|i| format!("{{ label_holder = {} }}", i == 0)).collect();
        let session = table(&format!(
            r#"
            name = "stage"
            first_layer = "sharing"
            seed = 7
            data = {{ test_fraction = 0.2, standardize = true, clip = 5.0, parties = [{}] }}
            [model]
            hidden_width = 8
            server = [{{ activation = "sigmoid" }}, {{ linear = 4 }}, {{ activation = "sigmoid" }}]
            head = {{ linear = 1, loss = "binary-cross-entropy" }}
            [train]
            epochs = 2
            batch_size = 16
            optimizer = {{ kind = "sgd", learning_rate = 0.1 }}
            "#,
            sections.join(", ")
        ));
        Self { directory, session, configs }
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// Names of all roles, in the order in which they can be started.
    pub(crate) fn roles(&self) -> Vec<String> {
        self.configs.keys().filter(|r| !r.starts_with("party")).chain(self.parties().iter()).cloned().collect()
    }

    pub(crate) fn parties(&self) -> Vec<String> {
        let mut parties: Vec<String> = self.configs.keys().filter(|r| r.starts_with("party")).cloned().collect();
        parties.sort();
        parties
    }

    pub(crate) fn config(&mut self, role: &str) -> &mut Table {
        self.configs.get_mut(role).unwrap()
    }

    /// Sets a value in the configuration of every role.
    pub(crate) fn everywhere(&mut self, key: &str, value: impl Into<Value> + Clone) {
        self.configs.values_mut().for_each(|c| drop(c.insert(key.into(), value.clone().into())));
    }

    /// Makes another party the label holder.
    pub(crate) fn labels_at(&mut self, holder: usize, rows: usize) {
        let parties = self.session["data"]["parties"].as_array_mut().unwrap();
        for (i, party) in parties.iter_mut().enumerate() {
            *party = table(&format!("label_holder = {}", i == holder)).into();
            let name = format!("party-{i}");
            let (config, csv) = if i == holder {
                ("file = \"data.csv\"\nid = \"id\"\nlabel = \"y\"", with_labels(&csv(i, rows), rows))
            } else {
                ("file = \"data.csv\"\nid = \"id\"", features_only(&csv(i, rows)))
            };
            fs::write(self.directory.path().join(&name).join("data.csv"), csv).unwrap();
            self.configs.get_mut(&name).unwrap().insert("data".into(), table(config).into());
        }
    }

    /// Starts a role; a listener has its port when this returns. Addresses are filled in from roles started before.
    pub(crate) fn start(&self, role: &str) -> Process {
        self.start_with(role, &[])
    }

    pub(crate) fn start_with(&self, role: &str, args: &[&str]) -> Process {
        let file = self.configure(role);
        let mut process = Process::spawn(role, &self.path(role), &file, args, None);
        if self.configs[role].contains_key("listen") {
            process.until(|_| self.path(role).join("address").exists());
        }
        process
    }

    /// Writes session and configuration of a role; addresses are filled in from roles started before.
    fn configure(&self, role: &str) -> PathBuf {
        // Whole or not at all: roles started before may be reading it.
        fs::write(self.path("session.toml.part"), toml::to_string(&self.session).unwrap()).unwrap();
        fs::rename(self.path("session.toml.part"), self.path("session.toml")).unwrap();
        let mut config = self.configs[role].clone();
        for (listener, dialed) in [("coordinator", role != "coordinator"), ("server", role.starts_with("party"))] {
            if dialed && !config.contains_key(listener) {
                config.insert(listener.into(), self.address(listener).into());
            }
        }
        let file = self.path(role).join("config.toml");
        fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        file
    }

    /// Starts a role that is killed when it has sent or received `messages` messages.
    pub(crate) fn start_doomed(&self, role: &str, messages: u64) -> Process {
        let file = self.configure(role);
        let mut process = Process::spawn(role, &self.path(role), &file, &["--log", TRACE], Some(messages));
        if self.configs[role].contains_key("listen") {
            process.until(|_| self.path(role).join("address").exists());
        }
        process
    }

    /// Lets every listener keep the port it has now, so that it can be started again.
    pub(crate) fn keep_ports(&mut self) {
        for listener in ["coordinator", "server"] {
            let address = self.address(listener);
            self.config(listener).insert("listen".into(), address.into());
        }
    }

    /// Where a listener is; an address nobody listens on if it has not started.
    pub(crate) fn address(&self, listener: &str) -> String {
        fs::read_to_string(self.path(listener).join("address")).unwrap_or_else(|_| "127.0.0.1:9".into())
    }

    /// Starts every role.
    pub(crate) fn start_all(&self) -> Vec<Process> {
        self.start_all_but(&[])
    }

    pub(crate) fn start_all_but(&self, absent: &[&str]) -> Vec<Process> {
        self.roles().iter().filter(|r| !absent.contains(&r.as_str())).map(|r| self.start(r)).collect()
    }

    /// Issues another certificate over the one a role has; returns its fingerprint.
    pub(crate) fn reissue(&self, authority: &str, role: &str, out: &str, days: i64) -> String {
        let out = self.path(out);
        for extension in ["key", "pem"] {
            let _ = fs::remove_file(out.join(format!("{role}.{extension}")));
        }
        let days = format!("--days={days}");
        let authority = self.path(authority);
        let said = spnn_ok(&["pki", "issue", "--role", role, "--dir", arg(&authority), "--out", arg(&out), &days]);
        said.out.split_whitespace().last().unwrap().to_owned()
    }

    /// A certificate for the key that a role has, in the place of the one before.
    pub(crate) fn renew(&self, role: &str, days: i64) {
        let certificate = self.path(role).join(format!("{role}.pem"));
        spnn_ok(&["pki", "renew", arg(&certificate)]);
        let (request, authority) = (certificate.with_extension("csr"), self.path("pki"));
        let days = format!("--days={days}");
        spnn_ok(&["pki", "issue", "--role", role, "--dir", arg(&authority), "--request", arg(&request), &days]);
    }

    /// The fingerprint of a role's key.
    pub(crate) fn fingerprint(&self, role: &str) -> String {
        let said = spnn_ok(&["pki", "show", arg(&self.path(role).join(format!("{role}.pem")))]);
        said.out.split_whitespace().last().unwrap().to_owned()
    }
}

/// A party's file: `id`, the label at party 0, three features.
pub(crate) fn csv(party: usize, rows: usize) -> String {
    let mut numbers = Numbers(party as u64);
    let mut text = String::from(if party == 0 { "id,y,a,b,c\n" } else { "id,a,b,c\n" });
    for row in 0..rows {
        let [a, b, c] = [(); 3].map(|()| numbers.real());
        let label = if party == 0 { format!("{},", u8::from(a + b > 0.0)) } else { String::new() };
        writeln!(text, "R{row:05},{label}{a:.6},{b:.6},{c:.6}").unwrap();
    }
    text
}

fn with_labels(csv: &str, rows: usize) -> String {
    if csv.starts_with("id,y") {
        return csv.to_owned();
    }
    let mut numbers = Numbers(99);
    let labels = std::iter::once("y".to_owned()).chain((0..rows).map(|_| (numbers.next() & 1).to_string()));
    let line = |(line, label): (&str, String)| {
        let (id, rest) = line.split_once(',').unwrap();
        format!("{id},{label},{rest}\n")
    };
    csv.lines().zip(labels).map(line).collect()
}

fn features_only(csv: &str) -> String {
    if !csv.starts_with("id,y") {
        return csv.to_owned();
    }
    let line = |line: &str| {
        let (id, rest) = line.split_once(',').unwrap();
        format!("{id},{}\n", rest.split_once(',').unwrap().1)
    };
    csv.lines().map(line).collect()
}

/// TOML from its text.
pub(crate) fn table(text: &str) -> Table {
    text.parse().unwrap()
}

/// One role as a process. Killed when dropped.
pub(crate) struct Process {
    pub(crate) role: String,
    child: Child,
    output: PathBuf,
    code: Option<i32>,
    /// Largest resident set seen, in bytes.
    peak_rss: Arc<AtomicU64>,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) role: String,
    pub(crate) code: i32,
    /// Everything it wrote.
    pub(crate) said: String,
    pub(crate) peak_rss: u64,
    /// Everything that all roles of the session wrote, for whoever looks for the reason of a failure.
    pub(crate) all_said: Arc<str>,
}

impl Process {
    fn spawn(role: &str, directory: &Path, config: &Path, args: &[&str], doomed: Option<u64>) -> Self {
        let kind = role.split('-').next().unwrap();
        if ["coordinator", "server"].contains(&kind) {
            let _ = fs::remove_file(directory.join("address"));
        }
        Self::run(role, directory, &[&[kind, "--config", arg(config)], args].concat(), doomed)
    }

    /// Starts `spnn` with these arguments; what it writes goes to a file in `directory`.
    pub(crate) fn run(role: &str, directory: &Path, args: &[&str], doomed: Option<u64>) -> Self {
        let output = directory.join("output");
        let mut file = File::create(&output).unwrap();
        let mut command = Command::new(SPNN);
        command.args(args).env_remove("SPNN_LOG").stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap());
        match doomed {
            None => command.stderr(file.try_clone().unwrap()),
            Some(_) => command.stderr(Stdio::piped()),
        };
        let mut child = command.spawn().unwrap();
        if let (Some(messages), Some(log)) = (doomed, child.stderr.take()) {
            let pid = Pid::from_raw(child.id().try_into().unwrap());
            std::thread::spawn(move || {
                let mut count = 0;
                for line in BufReader::new(log).lines().map_while(Result::ok) {
                    count += u64::from(line.contains("TRACE"));
                    if count == messages {
                        let _ = signal::kill(pid, Signal::SIGKILL);
                    }
                    let _ = writeln!(file, "{line}");
                }
            });
        }
        let peak_rss = Arc::new(AtomicU64::new(0));
        let (seen, pid) = (Arc::clone(&peak_rss), child.id());
        std::thread::spawn(move || {
            while let Some(bytes) = resident_max(pid) {
                seen.fetch_max(bytes, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Self { role: role.to_owned(), child, output, code: None, peak_rss }
    }

    /// The exit code if it has ended; −1 for a signal.
    pub(crate) fn poll(&mut self) -> Option<i32> {
        if self.code.is_none() {
            self.code = self.child.try_wait().unwrap().map(|s| s.code().unwrap_or(-1));
        }
        self.code
    }

    /// Waits until something holds or the process ends.
    pub(crate) fn until(&mut self, holds: impl Fn(&str) -> bool) {
        let since = Instant::now();
        while !holds(&self.said()) && self.poll().is_none() {
            assert!(since.elapsed() < PATIENCE, "{} never came so far:\n{}", self.role, self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Everything it has written so far.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Its resident set now, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        status_bytes(self.child.id(), "VmRSS:").unwrap_or(0)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> Ended {
        let since = Instant::now();
        let code = loop {
            if let Some(code) = self.poll() {
                break code;
            }
            assert!(since.elapsed() < PATIENCE, "{} does not end:\n{}", self.role, self.said());
            std::thread::sleep(Duration::from_millis(5));
        };
        let peak_rss = self.peak_rss.load(Ordering::Relaxed);
        Ended { role: self.role.clone(), code, said: self.said(), peak_rss, all_said: "".into() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.code.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Ended {
    /// What it printed last, with the error if there was one.
    pub(crate) fn error(&self) -> &str {
        self.said.rfind("error: ").map_or("", |at| &self.said[at..])
    }

    /// Checks the exit code, and that the error names all of `words`.
    pub(crate) fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}:\n{}\n{}", self.role, self.said, self.all_said);
        for word in words {
            let named = self.error().contains(word);
            assert!(named, "{} does not name '{word}':\n{}\n{}", self.role, self.said, self.all_said);
        }
    }
}

/// Waits for all processes. None may have panicked.
pub(crate) fn all_end(mut processes: Vec<Process>) -> BTreeMap<String, Ended> {
    let since = Instant::now();
    while processes.iter_mut().any(|p| p.poll().is_none()) && since.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut ended: BTreeMap<String, Ended> = processes.into_iter().map(|p| (p.role.clone(), p.end())).collect();
    let all_said: String = ended.values().map(|e| format!("--- {} ({})\n{}", e.role, e.code, e.said)).collect();
    let all_said = Arc::from(all_said);
    for e in ended.values_mut() {
        e.all_said = Arc::clone(&all_said);
        assert!(!e.said.contains("panicked"), "{} panicked:\n{}", e.role, e.said);
    }
    ended
}

/// Largest resident set of a running process so far, in bytes.
fn resident_max(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

/// A size in the system's account of a process.
fn status_bytes(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}
