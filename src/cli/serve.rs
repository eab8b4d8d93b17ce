//! `spnn serve`: at one role, or with every role of a simulation as its own process.

use super::config::ServiceConfig;
use super::launch::{Launch, launch, watch_signals};
use super::simulate::{of_run, say};
use super::{CliError, RunRole, Serve, TaskName, role};
use spnn::protocol::Task;
use std::time::Duration;

pub(crate) fn run(args: &Serve, log: &str) -> Result<(), CliError> {
    let Some(run_dir) = &args.run_dir else {
        let Some(config) = args.config.clone() else {
            return Err(CliError::Usage("name a run directory, or --config of a role".into()));
        };
        let ([] | [_]) = &args.data[..] else {
            return Err(CliError::Usage("a role has one --data; a directory is all files in it".into()));
        };
        let data = args.data.first().cloned();
        return role::any(&RunRole { config, task: TaskName::Serve, data, scores: None });
    };
    let (session, sources) = of_run(run_dir, &args.data)?;
    launch(&Launch {
        run_dir,
        session: &session,
        sources: &sources,
        task: Task::Serve,
        report: &run_dir.join("service"),
        scores: None,
        service: Some(ServiceConfig::at(args.listen)),
        log,
        checkpoint_every: Duration::ZERO,
        line: None,
        quiet: false,
        stop: watch_signals()?,
    })?;
    say("stopped");
    Ok(())
}
