//! `spnn`: parse the command line, run one role or a simulation, exit with a documented code.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod cli;

use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

// Batches come and go by the megabyte; glibc would return each to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    start_log(&cli);
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // A role that was asked to stop has done what it was asked.
        Err(e) if e.exit_code() == 0 => {
            eprintln!("{e}; start it again to go on");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            if let Some(hint) = e.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(e.exit_code())
        }
    }
}

fn start_log(cli: &cli::Cli) {
    // Libraries below log addresses and frames; ours is the level that was asked for.
    let filter = EnvFilter::try_new(&cli.log).unwrap_or_else(|e| {
        eprintln!("--log {}: {e}; using info", cli.log);
        EnvFilter::new("info")
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if cli.log_json { builder.json().init() } else { builder.init() }
}
